"""What a schema is, and what most of them share: the texts of one edit and a single probe."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes


@frozen(kw_only=True)
class Schema:
    """One form in which data sets come.

    Attributes:
        name: stands before the colon of a source.
        recognises: tells whether a record can be of no other schema.
        requests_of: returns what a record asks for; one that cannot be read raises a RequestError.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    requests_of: Callable[[Fields], Iterable[EditRequest]]


def noted(extra: dict[str, Any], *probes: Probes) -> dict[str, Any]:
    """Return ``extra`` with the probes that were left out as their answers are blank, if any were."""
    left_out = [path for one in probes for path in one.left_out]
    return {**extra, "left_out": left_out} if left_out else extra


def one_hop(fields: Fields, into: Probes) -> None:
    """Add the question that portability forms of CounterFact and ZsRE carry.

    Raises:
        RequestError: it has the wrong type.
    """
    question = fields.maybe_inner("portability")
    if question is not None:
        into.add(question, "New Question", "New Answer", "one_hop")
