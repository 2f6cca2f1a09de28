"""Reading a data set: which schema a source has, and its records as edit requests, one by one."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kedit_core import EditRequest
from kedit_core.errors import RequestError
from kedit_lab.fields import Fields
from kedit_lab.hub import HUB, records_of_the_hub
from kedit_lab.records import first_record, records_of
from kedit_lab.schemas import SCHEMAS, Schema, schema_of

_ENDINGS = (".json", ".jsonl")
_OWN_IDS = ("case_id", "id")
"""Fields by which people look a record up."""


def read(source: str) -> Iterable[EditRequest | RequestError] | None:
    """Return the requests of a data set, or None when the source is somebody else's.

    A record that cannot be read is a RequestError in its place, with the file, the record's number from
    1, its own id where it has one, the field and what is wrong with it. Records are parsed as they are
    asked for.

    Args:
        source: ``SCHEMA:FILE``, ``SCHEMA:hf://OWNER/NAME[@REVISION][/FILE][#SPLIT]``, or the path of a
            .json or .jsonl file whose first record can be of one schema only.

    Raises:
        RequestError: the file or the hub's data set cannot be read at all.
    """
    name, colon, place = source.partition(":")
    if colon and name in SCHEMAS:
        if not place:
            raise RequestError(
                f"name a file behind the colon, for example {name}:FILE.json", source
            )
        if place.startswith(HUB):
            return _requests(SCHEMAS[name], records_of_the_hub(place), place)
        return _requests(SCHEMAS[name], records_of(place), place)
    if not source.endswith(_ENDINGS) or not Path(source).is_file():
        return None
    schema = schema_of(first_record(source))
    return None if schema is None else _requests(schema, records_of(source), source)


def _requests(
    schema: Schema, records: Iterable[Any], place: str
) -> Iterator[EditRequest | RequestError]:
    for number, record in enumerate(records, 1):
        where = f"{place}, record {number}"
        try:
            if isinstance(record, RequestError):
                raise record
            if not isinstance(record, dict):
                raise RequestError(f"expected an object, found {type(record).__name__}")
            where += _own_id(record)
            # All or none: a record's questions may need all of its edits.
            found = list(schema.requests_of(Fields(values=record)))
        except RequestError as error:
            yield RequestError(error.problem, where)
        else:
            yield from found


def _own_id(record: dict[str, Any]) -> str:
    """Return " (case_id 7)" or the like, or nothing."""
    known = (name for name in _OWN_IDS if isinstance(record.get(name), int | str))
    name = next(known, None)
    return "" if name is None else f" ({name} {record[name]})"
