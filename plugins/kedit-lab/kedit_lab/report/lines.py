"""A metric along a stream: the mean over its orders with their spread, in as many points as are drawn."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isfinite, nan

from attrs import frozen

from kedit_lab.report.tracks import WHOLE_MODEL, Mean, Series, View

_UNEDITED = {"drift": 0.0, "locality.kl": 0.0, "locality.unchanged": 1.0}
"""What no model needs to be asked for."""


@frozen(kw_only=True)
class Reading:
    """A metric at one point.

    Attributes:
        at: how many requests had been gone through.
        value: mean over the orders; NaN where one of them is not finite.
        low: of the lowest order.
        high: of the highest order.
        orders: how many orders were judged there.
        weight: how many scores it stands for.
    """

    at: int
    value: float
    low: float
    high: float
    orders: int
    weight: int

    @property
    def finite(self) -> bool:
        """Tell whether it can be drawn."""
        return isfinite(self.value)


def readings(series: Series, metric: str) -> list[Reading]:
    """Return what the judgements of a series say of a metric, in the order of the stream."""
    found: dict[int, list[Mean]] = defaultdict(list)
    for track in series.tracks:
        # A stage that was judged again after a rollback: the last word counts.
        latest = {point.at: point.means[metric] for point in track.points if metric in point.means}
        for at, mean in latest.items():
            found[at].append(mean)
    return [_reading(at, means) for at, means in sorted(found.items())]


def thinned(found: Sequence[Reading], most: int, view: View, metric: str) -> list[Reading]:
    """Return at most ``most`` readings, each for as many judgements.

    Judgements of windows are averaged, each score with the same weight. What a judgement says of the whole
    stream or model so far is a state: of neighbouring ones the last is taken, and one that is not finite
    before any other.
    """
    if len(found) <= most:
        return list(found)
    state = view.cumulative or metric in WHOLE_MODEL
    cuts = [round(place * len(found) / most) for place in range(most + 1)]
    groups = (found[start:end] for start, end in pairwise(cuts))
    return [_last(group) if state else _together(group) for group in groups]


def baseline(series: Sequence[Series], metric: str) -> float | None:
    """Return what the unedited model scores, mean over the cells that know; None when none does."""
    values = [
        track.before[metric].value
        for one in series
        for track in one.tracks
        if metric in track.before
    ]
    finite = [value for value in values if isfinite(value)]
    if finite:
        return sum(finite) / len(finite)
    measured = any(track.before for one in series for track in one.tracks)
    return _UNEDITED.get(metric.partition(":")[0]) if measured else None


def ending(series: Series, metric: str, view: View) -> Reading | None:
    """Return what a series says of a metric in the end, mean over its orders; None without any score.

    Where only the newest edits were judged, it is the mean over all windows.
    """
    means = []
    state = view.cumulative or metric in WHOLE_MODEL
    for track in series.tracks:
        own = [(one.at, one.means[metric]) for one in track.points if metric in one.means]
        if own:
            at = max(at for at, _ in own)
            means.append((at, own[-1][1] if state else _pooled([mean for _, mean in own])))
    if not means:
        return None
    return _reading(max(at for at, _ in means), [mean for _, mean in means])


def _reading(at: int, means: Sequence[Mean]) -> Reading:
    values = [mean.value for mean in means]
    whole = all(map(isfinite, values))
    return Reading(
        at=at,
        value=sum(values) / len(values) if whole else nan,
        low=min(values) if whole else nan,
        high=max(values) if whole else nan,
        orders=len(means),
        weight=sum(mean.count for mean in means),
    )


def _pooled(means: Sequence[Mean]) -> Mean:
    weight = sum(mean.count for mean in means)
    return Mean(value=sum(mean.value * mean.count for mean in means) / weight, count=weight)


def _last(group: Sequence[Reading]) -> Reading:
    return next((one for one in group if not one.finite), group[-1])


def _together(group: Sequence[Reading]) -> Reading:
    weight = sum(one.weight for one in group)

    def mean(values: Iterable[float]) -> float:
        return sum(value * one.weight for value, one in zip(values, group, strict=True)) / weight

    return Reading(
        at=group[-1].at,
        value=mean(one.value for one in group),
        low=mean(one.low for one in group),
        high=mean(one.high for one in group),
        orders=min(one.orders for one in group),
        weight=weight,
    )
