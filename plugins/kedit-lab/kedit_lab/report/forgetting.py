"""The forgetting matrix: how the edits made first, second … fare at each later judgement of all of them."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, nan

from attrs import frozen

from kedit_core import retention
from kedit_core.judgements import Judgement
from kedit_lab.report.tracks import Point, Series, Track, View


@frozen(kw_only=True)
class Forgetting:
    """Mean reliability of blocks of edits, in the order made, at groups of judgements.

    Attributes:
        rows: after how many edits; of a group of judgements the last.
        blocks: places at which blocks begin, and the end.
        cells: (rows, blocks); NaN where a block was not made yet.
        fresh: mean over all edits when each was judged first.
        final: mean over all edits at the last judgement.
        area: of retention: how well edits held over the stretch of the stream since they were made.
        orders: how many orders it is the mean of.
    """

    rows: tuple[int, ...]
    blocks: tuple[int, ...]
    cells: tuple[tuple[float, ...], ...]
    fresh: float
    final: float
    area: float
    orders: int


def forgetting(series: Series, metric: str, view: View, most: int) -> Forgetting | None:
    """Return the forgetting matrix of a series; None where fewer than two judgements were of all edits.

    Args:
        series: one way of editing; its orders are averaged, place by place.
        metric: with one score for each request.
        view: that it belongs to.
        most: rows and blocks, at the most; more are averaged.
    """
    streams = [_rows(track.points, metric) for track in series.tracks] if view.cumulative else []
    streams = [rows for rows in streams if rows]
    ats = sorted({at for rows in streams for at in rows})
    if len(ats) < 2:
        return None
    blocks = _cuts(max(len(values) for rows in streams for values in rows.values()), most)
    bounds = [ats[end - 1] for end in _cuts(len(ats), most)[1:]]
    sums = _Sums(len(bounds), len(blocks) - 1)
    for rows in streams:
        for at, values in rows.items():
            row = next(place for place, bound in enumerate(bounds) if at <= bound)
            for column, (start, end) in enumerate(pairwise(blocks)):
                sums.add(row, column, values[start:end])
    return Forgetting(
        rows=tuple(bounds),
        blocks=tuple(blocks),
        cells=sums.means(),
        fresh=_mean([value for rows in streams for value in _first(rows)]),
        final=_mean([value for rows in streams for value in rows[max(rows)]]),
        area=_mean([retention(_judgements(track), metric).area for track in series.tracks]),
        orders=len(streams),
    )


def _judgements(track: Track) -> list[Judgement]:
    return [point.judgement for point in track.points]


class _Sums:
    """Sums and counts of a matrix that is filled piece by piece."""

    def __init__(self, rows: int, columns: int) -> None:
        self._sums = [[0.0] * columns for _ in range(rows)]
        self._counts = [[0] * columns for _ in range(rows)]

    def add(self, row: int, column: int, values: Sequence[float]) -> None:
        finite = [value for value in values if isfinite(value)]
        self._sums[row][column] += sum(finite)
        self._counts[row][column] += len(finite)

    def means(self) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(one / count if count else nan for one, count in zip(sums, counts, strict=True))
            for sums, counts in zip(self._sums, self._counts, strict=True)
        )


def _rows(points: Sequence[Point], metric: str) -> dict[int, list[float]]:
    """Return per judgement the value of each edit, in the order made; NaN where it has none."""
    found: dict[int, list[float]] = {}
    for point in points:
        values = {
            score.request: score.value
            for score in point.judgement.report.scores
            if score.metric == metric
        }
        if values:
            found[point.at] = [values.get(request, nan) for request in point.judgement.judged]
    return found


def _first(rows: dict[int, list[float]]) -> list[float]:
    """Return the first value of each place of a stream."""
    found: dict[int, float] = defaultdict(lambda: nan)
    for at in sorted(rows, reverse=True):
        found.update(enumerate(rows[at]))
    return list(found.values())


def _cuts(length: int, most: int) -> list[int]:
    """Return where at most ``most`` even pieces of a length begin, and its end."""
    pieces = min(length, most)
    return [round(place * length / pieces) for place in range(pieces + 1)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if isfinite(value)]
    return sum(finite) / len(finite) if finite else nan
