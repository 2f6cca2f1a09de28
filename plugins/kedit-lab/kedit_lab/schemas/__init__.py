"""The schemas of the field's data sets: how each is recognised, and what its records ask for."""

from kedit_lab.schemas.counterfact import COUNTERFACT
from kedit_lab.schemas.knowedit import KNOWEDIT
from kedit_lab.schemas.mquake import MQUAKE
from kedit_lab.schemas.rippleedits import RIPPLEEDITS
from kedit_lab.schemas.schema import Schema
from kedit_lab.schemas.wikibigedit import WIKIBIGEDIT
from kedit_lab.schemas.wise import WISE_HALLUCINATION, WISE_TEMPORAL
from kedit_lab.schemas.zsre import ZSRE, ZSRE_MEMIT

__all__ = ["SCHEMAS", "Schema", "schema_of"]

SCHEMAS = {
    schema.name: schema
    for schema in (
        COUNTERFACT,
        ZSRE,
        ZSRE_MEMIT,
        KNOWEDIT,
        WISE_HALLUCINATION,
        WISE_TEMPORAL,
        MQUAKE,
        WIKIBIGEDIT,
        RIPPLEEDITS,
    )
}


def schema_of(record: object) -> Schema | None:
    """Return the only schema that a record can be of, or None.

    Args:
        record: any JSON value.
    """
    if not isinstance(record, dict):
        return None
    found = [schema for schema in SCHEMAS.values() if schema.recognises(record)]
    return found[0] if len(found) == 1 else None
