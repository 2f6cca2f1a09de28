"""The paper of a chart: its axes, and the lines that are drawn on it."""

from collections.abc import Sequence
from functools import cached_property

from attrs import field, frozen

from kedit_lab.report.lines import Reading
from kedit_lab.report.measures import Measure
from kedit_lab.report.scales import Scale, values_scale

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 42, 314, 14, 180
"""Of the field that lines are in; figures stand around it."""

_MARKED = 13  # lines of so few points show each


def _many(found: Sequence[Reading]) -> tuple[Reading, ...]:
    return tuple(found)


@frozen(kw_only=True)
class Line:
    """One way of editing in one chart.

    Attributes:
        label: what it is called.
        colour: its place among all ways of editing of the run.
        orders: in how many orders it ran.
        readings: finite or not, oldest first.
    """

    label: str
    colour: int
    orders: int
    readings: tuple[Reading, ...] = field(converter=_many)

    @property
    def finite(self) -> list[Reading]:
        """Return what can be drawn."""
        return [one for one in self.readings if one.finite]


@frozen(kw_only=True)
class Plot:
    """Axes and lines of one metric.

    Attributes:
        measure: what is drawn.
        lines: each with a reading at least.
        before: of the unedited model; None where nobody knows.
        x: number of edits; of a slope 0 is the unedited model and 1 the only judgement.
        y: the metric.
    """

    measure: Measure
    lines: tuple[Line, ...]
    before: float | None
    x: Scale
    y: Scale

    @cached_property
    def ats(self) -> list[int]:
        """Return after how many edits there is a reading."""
        return sorted({one.at for line in self.lines for one in line.readings})

    @property
    def slope(self) -> bool:
        """Tell whether there is one judgement only, so that lines lead to it from the unedited model."""
        return len(self.ats) == 1

    @property
    def few(self) -> bool:
        """Tell whether points are so few that each is shown."""
        return max(len(line.readings) for line in self.lines) < _MARKED

    def place(self, at: int) -> float:
        """Return where a number of edits lies."""
        return self.x(1 if self.slope else at)


def plot(
    lines: Sequence[Line], measure: Measure, before: float | None, asked: int, staged: bool
) -> Plot:
    """Return the paper that some lines fit on.

    Args:
        lines: each with a reading at least.
        measure: what they say.
        before: of the unedited model.
        asked: edits of the longest stream; one that ended early is seen to.
        staged: judged after stages, which grow by factors, and so does the axis.
    """
    inside = [edge for line in lines for one in line.finite for edge in (one.low, one.high)]
    inside += [] if before is None else [before]
    return Plot(
        measure=measure,
        lines=tuple(lines),
        before=before,
        x=_along({one.at for line in lines for one in line.readings}, asked, staged),
        y=values_scale(inside, measure.share, BOTTOM, TOP),
    )


def _along(ats: set[int], asked: int, staged: bool) -> Scale:
    first, last = (0, 1) if len(ats) == 1 else (min(ats), max(*ats, asked))
    logarithmic = staged and first > 0 and last / first > 20
    return Scale(
        low=first if logarithmic else 0,
        high=last,
        start=LEFT + 4,
        end=RIGHT - 4,
        logarithmic=logarithmic,
    )
