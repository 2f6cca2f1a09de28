"""Streams: many edits by a schedule, judged as they come, that can be stopped anywhere and gone on with."""

import logging
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from kedit_core.computing import check_model, check_requests
from kedit_core.conflicts import Policy, settled
from kedit_core.deltas import Delta
from kedit_core.errors import KeditError
from kedit_core.judgements import Judgement
from kedit_core.judging import Metrics, peak_memory
from kedit_core.limits import Breach, Governor, Limits
from kedit_core.machine import give_back_memory
from kedit_core.record import Made, Record
from kedit_core.reports import EvalReport
from kedit_core.requests import EditRequest
from kedit_core.schedule import Point, Schedule

if TYPE_CHECKING:
    from kedit_core.editor import Editor

log = logging.getLogger(__name__)


class Stream:
    """A stream of edits under way: iterating makes the edits and yields the judgements as they come.

    What stops the iteration, Ctrl-C included, leaves the model as after the last whole batch.

    Attributes:
        requests: to be made, in order, once conflicts were settled.
        decisions: how conflicts were settled.
        breaches: limits that were broken so far.
        stopped: why the stream ended early; empty where it did not.
    """

    def __init__(
        self,
        editor: "Editor",
        requests: Sequence[EditRequest],
        schedule: Schedule,
        *,
        metrics: Metrics | None = None,
        method: str | None = None,
        config: Any = None,
        conflicts: Policy = "error",
        limits: Limits | None = None,
        record: Record | None = None,
    ) -> None:
        """Prepare a stream; nothing is edited yet.

        Args:
            editor: whose model is edited.
            requests: whole, probes included, in order.
            schedule: how many at a time, when judged, on what.
            metrics: as for ``Editor.evaluate``.
            method: by default the editor's own.
            config: of the method, by default the editor's own.
            conflicts: what happens to requests that cannot all hold.
            limits: what the stream may cost.
            record: remembers the stream, and what was made of it before.

        Raises:
            ConflictError: there are conflicts, and the policy is ``"error"``.
            KeditError: a request cannot be made, or the schedule asks for what the method cannot do.
        """
        self._editor, self._schedule, self._metrics = editor, schedule, metrics
        self._method, self._config = method, config
        self._record = record if record is not None else Record()
        in_force = [request for delta in editor.deltas for request in delta.requests]
        if record is not None and editor.history:
            raise KeditError(
                "a recorded stream begins with the unedited model; undo its edits first"
            )
        found = settled(requests, in_force, conflicts)
        self.requests, self.decisions = found.requests, found.decisions
        self._take_out = found.take_out
        count = len(self.requests)
        self._batches, self._points = list(schedule.batches(count)), _by_end(schedule, count)
        self._newest: dict[tuple[int, int], EvalReport] = {}
        self._check_requests()
        self._limits, self._governor = limits, None if limits is None else Governor(limits, editor)
        self._start = self._good = editor.history
        self._begun, self._good_at = False, 0
        self.breaches: tuple[Breach, ...] = ()
        self.stopped = ""

    def __iter__(self) -> Iterator[Judgement]:
        """Make the edits; yield each judgement as it is made."""
        if self._begun:
            raise KeditError("a stream is gone through once; make a new one")
        self._begun = True
        self._go_on()
        with self._editor.progress.task("editing", len(self.requests), "edits") as advance:
            for place, batch in enumerate(self._batches):
                if place >= self._record.batches:
                    self._make(place, [self.requests[n] for n in batch])
                advance(len(batch))
                broken = self._checked(place, batch)
                yield from self._judged(batch.stop, broken or ())
                self._after(place, batch.stop, broken)
                if self.stopped:
                    break
        self._record.end(self.stopped)

    @property
    def made(self) -> int:
        """Return how many requests were made in an earlier life of the stream, as its record says."""
        return self._batches[self._record.batches - 1].stop if self._record.batches else 0

    def before(self) -> EvalReport:
        """Return the scores of the unedited model on all requests."""
        with self._editor.original():
            return self._editor.evaluate(self.requests, self._metrics)

    def _check_requests(self) -> None:
        editor = self._editor
        info = editor.info(self._method)
        replaced = {name for names in self._take_out.values() for name in names}
        for batch in self._batches:
            in_force = [] if replaced else editor.deltas
            some = [self.requests[n] for n in batch]
            check_requests(some, info, in_force, lambda method: editor.info(method).kind)
        check_model(editor.model, editor.tokenizer, self.requests, chat=editor.chat)

    def _go_on(self) -> None:
        """Bring the model to where the record ends."""
        record = self._record
        record.begin(self.requests, self.decisions)
        if record.batches:
            made = record.history()
            self._editor.go_to((*self._start, *made.values()))
            good = [delta for place, delta in made.items() if place < record.good]
            self._good = (*self._start, *good)
            self._good_at = self._batches[record.good - 1].stop if record.good else 0

    def _make(self, place: int, requests: Sequence[EditRequest]) -> None:
        """Make one batch and note it, or leave the model as it was."""
        editor, before = self._editor, self._editor.history
        replaced = [name for request in requests for name in self._take_out.get(request.id, ())]
        digests: dict[str, str] = {}

        def keep(delta: Delta) -> None:
            digests.update(editor.weights.written_digests(delta))
            self._record.keep(delta)

        started = perf_counter()
        try:
            if replaced:
                editor.remove(*replaced)
            parent = editor.history[-1].id if editor.history else None
            delta = editor.edit(requests, self._method, self._config, keep=keep)
            self._record.add(
                Made(
                    place=place,
                    requests=requests,
                    delta=delta,
                    parent=parent,
                    before=digests,
                    seconds=perf_counter() - started,
                    peak_memory=peak_memory(editor.model),
                )
            )
        except BaseException:
            editor.go_to(before)
            raise

    def _checked(self, place: int, batch: range) -> tuple[Breach, ...] | None:
        """Return the limits that are broken now; None while it is not time to look."""
        if self._governor is None or not self._due(batch):
            return None
        known = self._record.check(batch.stop)
        if known is None:
            some = self.requests[: batch.stop] if self._schedule.keep else self._window(batch)
            known = self._governor.check(some, at=batch.stop, since=self._good_at)
            self._record.checked(batch.stop, place + 1, known)
        return known

    def _due(self, batch: range) -> bool:
        assert self._limits is not None
        every = self._limits.every
        crossed = batch.stop // every > batch.start // every
        staged = bool(self._schedule.stages) and batch.stop in self._points
        return crossed or staged or batch.stop == len(self.requests)

    def _window(self, batch: range) -> Sequence[EditRequest]:
        """Return the requests in force when windows are taken out again."""
        length = self._schedule.intervals[0]
        return self.requests[batch.start // length * length : batch.stop]

    def _judged(self, at: int, breaches: Sequence[Breach]) -> Iterator[Judgement]:
        for point in self._points.get(at, ()):
            found = self._record.judgement(point)
            if found is None:
                some = self.requests[point.first : at]
                found = Judgement(
                    at=at,
                    interval=point.interval,
                    judged=[request.id for request in some],
                    report=self._report(point, some),
                    breaches=tuple(breaches),
                )
                self._record.judged(found)
                give_back_memory()
            yield found

    def _report(self, point: Point, requests: Sequence[EditRequest]) -> EvalReport:
        """Return the scores at a point; intervals that end together and judge the same are asked once."""
        key = (point.at, point.first)
        if key not in self._newest:
            self._newest = {key: self._editor.evaluate(requests, self._metrics)}
        return self._newest[key]

    def _after(self, place: int, at: int, breaches: Sequence[Breach] | None) -> None:
        """Do what a breach asks for, or remember a good state; take a window out that was judged."""
        self.breaches += tuple(breaches or ())
        if place < self._record.batches - 1:
            return  # gone through before a crash: the model is what it became since
        if breaches:
            self._act_on(breaches)
        elif breaches is not None:
            self._good, self._good_at = self._editor.history, at
        if not self._schedule.keep and at in self._points:
            self._editor.go_to(self._start)
            self._record.take_out(0)

    def _act_on(self, breaches: Sequence[Breach]) -> None:
        assert self._limits is not None
        sentence = "; ".join(str(breach) for breach in breaches)
        if self._limits.action == "warn":
            log.warning("%s", sentence)
            return
        if self._limits.action == "rollback":
            self._editor.go_to(self._good)
            self._record.take_out(self._record.good)
            sentence += (
                f"; the model is back to what it was after {self._good_at} edits, and the "
                f"{breaches[0].at - self._good_at} after them are out"
            )
        self.stopped = sentence


def _by_end(schedule: Schedule, count: int) -> dict[int, list[Point]]:
    """Return the points of a stream by after how many requests they are."""
    found: dict[int, list[Point]] = {}
    for point in schedule.points(count):
        found.setdefault(point.at, []).append(point)
    return found
