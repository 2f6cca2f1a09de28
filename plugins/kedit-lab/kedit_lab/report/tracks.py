"""What is compared with what: views of a run, the ways of editing in each, and what each judgement says."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from attrs import field, frozen

from kedit_core.judgements import Judgement
from kedit_core.reports import EvalReport
from kedit_core.run_records import CellRecord, RunRecord
from kedit_core.schedule import Schedule
from kedit_lab.report import wording

WHOLE_MODEL = ("perplexity", "drift")
"""Metrics of the model as it stands, whatever was judged."""


@frozen(kw_only=True)
class Mean:
    """The mean of some scores.

    Attributes:
        value: NaN or infinite when a score is.
        count: how many there are.
    """

    value: float
    count: int


@frozen(kw_only=True)
class Point:
    """One judgement, its scores gathered.

    Attributes:
        at: how many requests of the stream had been gone through.
        means: by metric.
        judgement: as it was made.
    """

    at: int
    means: Mapping[str, Mean] = field(repr=False)
    judgement: Judgement = field(repr=False)


@frozen(kw_only=True)
class Track:
    """One cell as a view shows it.

    Attributes:
        cell: as the run holds it.
        before: means of the unedited model, by metric; empty without a baseline.
        points: its judgements that belong to the view.
    """

    cell: CellRecord
    before: Mapping[str, Mean] = field(repr=False)
    points: tuple[Point, ...]


@frozen(kw_only=True)
class Series:
    """One way of editing, in all orders that it was run in.

    Attributes:
        label: what a table calls it.
        colour: its place among all ways of editing of the run, from 0.
        tracks: one for each order.
    """

    label: str
    colour: int
    tracks: tuple[Track, ...]


@frozen(kw_only=True, eq=False)
class View:
    """What can be laid side by side: one model, edited and judged in one manner.

    Attributes:
        model: as the plan names it.
        schedule: of its cells.
        interval: the T that is shown; None where all judgements belong together.
        name: what tells it from the other views; empty when it is the only one.
        series: ways of editing.
    """

    model: str
    schedule: Schedule
    interval: int | None
    name: str
    series: tuple[Series, ...]

    @property
    def cumulative(self) -> bool:
        """Tell whether a judgement says how all edits fare, and not only the newest."""
        if self.schedule.evaluate_on == "all":
            return True
        points = [one for way in self.series for track in way.tracks for one in track.points]
        return all(len(one.judgement.judged) == one.at for one in points)


def labels_of(run: RunRecord) -> list[str]:
    """Return the ways of editing of a run, in its order."""
    return list(dict.fromkeys(cell.label for cell in run.cells))


def views_of(run: RunRecord) -> tuple[View, ...]:
    """Return the views of a run, in the order of its cells and of T."""
    places = {label: place for place, label in enumerate(labels_of(run))}
    groups: dict[_Manner, list[CellRecord]] = defaultdict(list)
    for cell in run.cells:
        for interval in _intervals(cell.schedule):
            groups[_Manner.of(cell, interval)].append(cell)
    named = _names(groups)
    before = {id(cell): means_of(cell.before) for cell in run.cells}
    return tuple(
        View(
            model=manner.model,
            schedule=cells[0].schedule,
            interval=manner.interval,
            name=named[manner],
            series=tuple(_series(cells, manner.interval, places, before)),
        )
        for manner, cells in groups.items()
    )


def means_of(report: EvalReport | None) -> dict[str, Mean]:
    """Return the mean of each metric of a report; nothing without one."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for score in () if report is None else report.scores:
        totals[score.metric] += score.value
        counts[score.metric] += 1
    return {name: Mean(value=totals[name] / count, count=count) for name, count in counts.items()}


@frozen
class _Manner:
    """What cells of one view have in common."""

    model: str
    way: str
    judged: str
    interval: int | None

    @classmethod
    def of(cls, cell: CellRecord, interval: int | None) -> "_Manner":
        asked = cell.schedule
        return cls(cell.model, wording.editing(asked), asked.evaluate_on, interval)


def _intervals(schedule: Schedule) -> tuple[int | None, ...]:
    return schedule.intervals if schedule.intervals and not schedule.stages else (None,)


def _series(
    cells: Iterable[CellRecord],
    interval: int | None,
    places: Mapping[str, int],
    before: Mapping[int, Mapping[str, Mean]],
) -> Iterable[Series]:
    ways: dict[str, list[Track]] = defaultdict(list)
    for cell in cells:
        shown = [one for one in cell.judgements if interval is None or one.interval == interval]
        points = tuple(Point(at=one.at, means=means_of(one.report), judgement=one) for one in shown)
        ways[cell.label].append(Track(cell=cell, before=before[id(cell)], points=points))
    for label, tracks in ways.items():
        yield Series(label=label, colour=places[label], tracks=tuple(tracks))


def _names(manners: Iterable[_Manner]) -> dict[_Manner, str]:
    """Return per manner what tells it from the others."""
    several = list(manners)
    differ = {
        part: len({getattr(one, part) for one in several}) > 1
        for part in ("model", "way", "judged", "interval")
    }
    return {one: ", ".join(_parts(one, differ)) for one in several}


def _parts(manner: _Manner, differ: Mapping[str, bool]) -> Iterable[str]:
    if differ["model"]:
        yield manner.model
    if differ["way"]:
        yield manner.way
    if differ["judged"]:
        yield f"judged on the {manner.judged}" if manner.judged != "all" else "judged on all"
    if differ["interval"]:
        yield "judged at the end" if manner.interval is None else f"T = {manner.interval:,}"
