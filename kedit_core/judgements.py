"""Judgements: what a stream of edits is worth at one point."""

from collections.abc import Iterable

from attrs import field, frozen

from kedit_core.limits import Breach
from kedit_core.reports import EvalReport


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen(kw_only=True)
class Judgement:
    """What a stream of edits is worth at one point.

    Attributes:
        at: how many requests of the stream have been gone through.
        interval: the T of a comparison over T.
        judged: ids of the requests that were judged, in order.
        report: their scores.
        breaches: limits that the model broke at this point.
    """

    at: int
    interval: int
    judged: tuple[str, ...] = field(converter=_names, repr=lambda ids: f"<{len(ids)} requests>")
    report: EvalReport
    breaches: tuple[Breach, ...] = ()
