"""Records: what outlives a stream of edits, so that it can be gone on with."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from kedit_core.conflicts import Decision
from kedit_core.deltas import Delta
from kedit_core.judgements import Judgement
from kedit_core.limits import Breach
from kedit_core.requests import EditRequest
from kedit_core.schedule import Point


@frozen(kw_only=True)
class Made:
    """A batch that is in the model.

    Attributes:
        place: of the batch in its stream, from 0.
        requests: what was asked.
        delta: its delta, with the digests of what it left in the model.
        parent: id of the delta that was the newest before; None for the first.
        before: per touched parameter its digest before the edit.
        seconds: that the edit took.
        peak_memory: bytes at the most.
    """

    place: int
    requests: Sequence[EditRequest]
    delta: Delta
    parent: str | None
    before: Mapping[str, str]
    seconds: float
    peak_memory: int


class Record:
    """What outlives a stream: here nothing; a journal keeps everything.

    A stream asks its record first, and works only where the record does not know. What it has kept the
    next time is what it was given before a crash: all of it, up to some point.

    Attributes:
        batches: how many were made before.
        good: how many batches had been made when the model was last found within its limits.
    """

    batches = 0
    good = 0

    def begin(self, requests: Sequence[EditRequest], decisions: Sequence[Decision]) -> None:
        """Take note of what will be made, in order; when it differs from before, refuse."""

    def history(self) -> Mapping[int, Delta]:
        """Return the deltas in force by the place of their batch, in order; of a memory at least the newest."""
        return {}

    def keep(self, delta: Delta) -> None:
        """Keep a delta that will go into the model next."""

    def add(self, made: Made) -> None:
        """Take note of a batch that is in the model now."""

    def judgement(self, point: Point) -> Judgement | None:
        """Return the judgement that was made at a point."""
        del point
        return None

    def judged(self, judgement: Judgement) -> None:
        """Take note of a judgement."""

    def check(self, at: int) -> tuple[Breach, ...] | None:
        """Return the limits that the model broke after ``at`` requests; None when that was not checked."""
        del at
        return None

    def checked(self, at: int, batches: int, breaches: Sequence[Breach]) -> None:
        """Take note of a check of the limits."""

    def take_out(self, batches: int) -> None:
        """Take note that of the batches only the first ``batches`` are in force still."""

    def end(self, stopped: str) -> None:
        """Take note that nothing is left to do, and why when it ended early."""
