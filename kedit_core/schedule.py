"""Schedules: how many edits are made at a time, when they are judged and on what, and whether they stay.

Batched editing is one big batch, continual editing many small ones; the same schedule says both.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from attrs import Attribute, field, frozen

from kedit_core.errors import ConfigError

EvaluateOn = Literal["batch", "window", "all"]

_WHERE = "schedule"


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@frozen(kw_only=True)
class Point:
    """When a stream is judged, and on what.

    Attributes:
        at: how many requests of the stream have been gone through.
        interval: the T of a comparison over T: how many requests this judgement closes; the last window of
            a stream may hold fewer.
        first: place of the first request that is judged; the last one is ``at - 1``.
    """

    at: int
    interval: int
    first: int


@frozen(kw_only=True)
class Schedule:
    """How a stream of requests is edited and judged.

    Attributes:
        batch_size: requests an edit takes together; ``"all"`` takes all there are (of a stage).
        interval: judged after every so many requests, a multiple of ``batch_size``, and after the last one;
            ``"end"`` judges once. Several intervals are ONE stream, judged at the points of each. By default
            after every batch.
        evaluate_on: what is judged: the newest ``"batch"``, the ``"window"`` of requests since the interval
            began, or ``"all"`` so far.
        keep: False takes a window out again once it was judged.
        stages: judged after the first so many requests, then the next so many, counted from the start, for
            example ``(1, 10, 100, "all")``; in the place of an interval.

    Raises:
        ConfigError: the fields contradict each other.
    """

    batch_size: int | Literal["all"] = field(default=1)
    interval: int | Literal["end"] | tuple[int, ...] = field(converter=_several)
    evaluate_on: EvaluateOn = "batch"
    keep: bool = field(default=True)
    stages: tuple[int | Literal["all"], ...] = field(default=(), converter=_several)

    @interval.default
    def _after_each_batch(self) -> int | str:
        return "end" if self.batch_size == "all" else self.batch_size

    @batch_size.validator
    def _is_a_size(self, _: "Attribute[Any]", value: int | str) -> None:
        if value != "all" and not (type(value) is int and value > 0):
            raise ConfigError(_WHERE, [f'batch_size must be 1 or more, or "all", not {value!r}'])

    @interval.validator
    def _fits_the_batches(self, _: "Attribute[Any]", value: Any) -> None:
        if value == "end":
            return
        if value == () or not all(type(one) is int and one > 0 for one in self.intervals):
            raise ConfigError(
                _WHERE, [f'interval must be 1 or more, several of these, or "end", not {value!r}']
            )
        if self.batch_size == "all":
            raise ConfigError(_WHERE, ['batch_size "all" is one batch: interval must be "end"'])
        for one in self.intervals:
            if one % self.batch_size:
                raise ConfigError(
                    _WHERE,
                    [f"interval {one} is no multiple of batch_size {self.batch_size}"],
                )

    @keep.validator
    def _can_be_taken_out(self, _: "Attribute[Any]", value: bool) -> None:
        if value:
            return
        if self.interval == "end":
            raise ConfigError(
                _WHERE, ['keep=False takes windows out, and interval "end" has one: give a number']
            )
        if self.evaluate_on == "all":
            raise ConfigError(
                _WHERE,
                ['keep=False leaves nothing to judge later: evaluate_on "window" or "batch"'],
            )
        if len(self.intervals) > 1:
            raise ConfigError(
                _WHERE, ["with keep=False each interval is a stream of its own: give one at a time"]
            )

    @stages.validator
    def _grow(self, _: "Attribute[Any]", value: Sequence[int | str]) -> None:
        counts = [one for one in value if one != "all"]
        whole = all(type(one) is int and one > 0 for one in counts)
        if not whole or any(a >= b for a, b in pairwise(counts)) or "all" in value[:-1]:  # type: ignore[operator]
            raise ConfigError(
                _WHERE, [f'stages must be growing counts, "all" the last, not {list(value)!r}']
            )
        if value and not self.keep:
            raise ConfigError(_WHERE, ["stages build on each other: they need keep=True"])
        if value and self.interval != self._after_each_batch():
            raise ConfigError(_WHERE, ["stages and interval both say when to judge: give one"])

    @property
    def intervals(self) -> tuple[int, ...]:
        """Return the intervals; none for ``"end"``."""
        if isinstance(self.interval, tuple):
            return self.interval
        return () if isinstance(self.interval, str) else (self.interval,)

    def batches(self, count: int) -> Iterator[range]:
        """Yield the places of the requests of each batch, in order.

        Args:
            count: of all requests.
        """
        for start, end in pairwise((0, *self._stage_ends(count))):
            size = end - start if self.batch_size == "all" else self.batch_size
            for first in range(start, end, max(size, 1)):
                yield range(first, min(first + size, end))

    def points(self, count: int) -> Iterator[Point]:
        """Yield when a stream of ``count`` requests is judged, in order.

        Two intervals that end together are two points: what they judge differs.
        """
        last = {batch.stop: batch.start for batch in self.batches(count)}
        for end, start, interval in sorted(self._windows(count), key=lambda one: (one[0], one[2])):
            first = {"batch": last[end], "window": start, "all": 0}[self.evaluate_on]
            yield Point(at=end, interval=interval, first=first)

    def _windows(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield after how many requests each window ends, where it began, and its interval."""
        if self.stages or self.interval == "end":
            for start, end in pairwise((0, *self._stage_ends(count))):
                yield end, start, end - start
        for length in () if self.stages else self.intervals:
            for start in range(0, count, length):
                yield min(start + length, count), start, length

    def _stage_ends(self, count: int) -> tuple[int, ...]:
        """Return after how many requests a stage ends; one that asks for more than there are ends with them."""
        if count == 0:
            return ()
        ends = [count if one == "all" else min(int(one), count) for one in self.stages]
        return tuple(dict.fromkeys([*ends, count]))
