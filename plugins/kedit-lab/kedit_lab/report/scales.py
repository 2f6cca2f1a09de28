"""Axes: from values to places on paper, and the ticks beside them."""

from collections.abc import Sequence
from math import ceil, floor, log10

from attrs import frozen


@frozen(kw_only=True)
class Scale:
    """A straight or logarithmic axis.

    Attributes:
        low: value at its start.
        high: value at its end; above ``low``.
        start: where it starts on paper.
        end: where it ends.
        logarithmic: equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return where a value lies on paper."""
        share = (self._read(value) - self._read(self.low)) / (
            self._read(self.high) - self._read(self.low)
        )
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 4) -> list[float]:
        """Return round values inside the axis, about ``most`` of them."""
        if self.logarithmic:
            return self._decades(most)
        step = _round_step((self.high - self.low) / most)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]

    def _decades(self, most: int) -> list[float]:
        first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
        if last - first < 1:
            powers = range(floor(log10(self.low)), last + 1)
            all_of = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            return [one for one in all_of if self.low <= one <= self.high]
        step = ceil((last - first + 1) / (most + 1))
        return [10.0**power for power in range(first, last + 1, step)]

    def _read(self, value: float) -> float:
        return log10(value) if self.logarithmic else value


def values_scale(values: Sequence[float], share: bool, start: float, end: float) -> Scale:
    """Return the axis of a metric: all of 0 to 1 for a share, else what the values need.

    Args:
        values: finite; there may be none.
        share: they are between 0 and 1.
        start: where the axis starts on paper.
        end: where it ends.
    """
    if share:
        inside = [0.0, 1.0, *values]
        return Scale(low=min(inside), high=max(inside), start=start, end=end)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high / low > 20:
        return Scale(low=low / 1.2, high=high * 1.2, start=start, end=end, logarithmic=True)
    # A metric that hardly moves is drawn as hardly moving: the axis spans a tenth of its size at least.
    room = max(high - low, 0.1 * max(abs(low), abs(high)), 1e-9)
    middle = (low + high) / 2
    bottom = middle - 0.6 * room
    return Scale(
        low=0.0 if low >= 0 and (bottom < 0 or low < 0.3 * high) else bottom,
        high=middle + 0.6 * room,
        start=start,
        end=end,
    )


def spread_out(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Return places moved as little as it takes to be ``apart`` from each other, between two bounds."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = [0.0] * len(places)
    floor_ = low
    for rank in order:
        moved[rank] = max(places[rank], floor_)
        floor_ = moved[rank] + apart
    ceiling = high
    for rank in reversed(order):
        moved[rank] = min(moved[rank], ceiling)
        ceiling = moved[rank] - apart
    return [round(place, 1) for place in moved]


def _round_step(size: float) -> float:
    power = 10.0 ** floor(log10(size))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= size * (1 - 1e-9))
