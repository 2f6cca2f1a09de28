"""Retention: how earlier edits fare at each later judgement of a stream.

Let r_ij be the mean score, at judgement i, of the edits that were made between judgements j - 1 and j.
The matrix r is lower triangular: its diagonal says how new edits fare, its last row what is left in the
end. The area of block j is the mean of r_ij over the stretch of the stream since it was made (trapezoids
between judgements), so 1 means that it never failed; the area of the whole is the mean over all edits.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import isnan, nan

from attrs import frozen

from kedit_core.judgements import Judgement


@frozen(kw_only=True)
class Retention:
    """The forgetting matrix of one stream.

    Attributes:
        metric: what was measured.
        at: (judgements,) after how many requests each judgement was made; block j ends at ``at[j]``.
        matrix: (judgements, blocks) mean scores, NaN where the block was not made yet or has no data.
    """

    metric: str
    at: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...]

    @property
    def areas(self) -> tuple[float, ...]:
        """Return the area of each block (blocks,)."""
        return tuple(_area(self.at[j:], [row[j] for row in self.matrix[j:]]) for j in self._blocks)

    @property
    def area(self) -> float:
        """Return the area of the whole: the mean over all edits; NaN where nothing was judged."""
        sizes = [end - start for start, end in pairwise((0, *self.at))]
        known = [(a, n) for a, n in zip(self.areas, sizes, strict=True) if not isnan(a)]
        return sum(a * n for a, n in known) / sum(n for _, n in known) if known else nan

    @property
    def forgotten(self) -> tuple[float, ...]:
        """Return by how much each block has fallen since it was made (blocks,)."""
        return tuple(self.matrix[j][j] - self.matrix[-1][j] for j in self._blocks)

    @property
    def _blocks(self) -> range:
        return range(len(self.at))


def retention(judgements: Sequence[Judgement], metric: str = "reliability.exact") -> Retention:
    """Return the forgetting matrix of a stream.

    Args:
        judgements: of one stream; those that judged all edits so far (``evaluate_on="all"``) count.
        metric: a metric of requests.
    """
    whole = {one.at: one for one in judgements if len(one.judged) == one.at}
    order = [whole[at] for at in sorted(whole)]
    edges = (0, *(one.at for one in order))
    rows = []
    for one in order:
        found = {s.request: s.value for s in one.report.scores if s.metric == metric}
        values = [found.get(name, nan) for name in one.judged]
        rows.append(tuple(_mean(values[start:end]) for start, end in pairwise(edges)))
    return Retention(metric=metric, at=edges[1:], matrix=tuple(rows))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else nan


def _area(at: Sequence[int], values: Sequence[float]) -> float:
    """Return the mean height of a line through (at, values), where it has values."""
    known = [(x, y) for x, y in zip(at, values, strict=True) if not isnan(y)]
    if len(known) < 2:
        return known[0][1] if known else nan
    whole = sum((b - a) * (y + z) / 2 for (a, y), (b, z) in pairwise(known))
    return whole / (known[-1][0] - known[0][0])
