"""Tables: how each way of editing ends, by relation, and what it cost."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, nan

from attrs import frozen

from kedit_core.run_records import CellRecord
from kedit_lab.report import wording
from kedit_lab.report.lines import Reading, baseline, ending
from kedit_lab.report.markup import Html, cut, element, foreign, html, joined
from kedit_lab.report.measures import Measure, all_measures
from kedit_lab.report.tracks import Series, View

_NAME = 60


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    left: int = 1,
    shares: Sequence[Sequence[float]] = (),
) -> Html:
    """Return a table whose first column names its rows.

    Args:
        head: of the columns.
        rows: cells, markup or text.
        caption: what a reader hears who cannot see the heading.
        left: so many columns hold words, the others figures.
        shares: per row the shares that its last columns say, drawn as bars; NaN where there is none.
    """
    top = (
        element("th", one, scope="col", class_=None if place < left else "n")
        for place, one in enumerate(head)
    )
    drawn = shares or [()] * len(rows)
    body = (element("tr", *_cells(row, left, own)) for row, own in zip(rows, drawn, strict=True))
    written = element(
        "table",
        element("thead", element("tr", *top)),
        element("tbody", *body),
        aria_label=caption,
    )
    return element("div", written, class_="wide", tabindex=0)


def more(count: int, thing: str) -> str:
    """Return "… and 3 more relations"."""
    return f"… and {wording.count(count, f'more {thing}')}"


def endings(view: View, most: int) -> Html:
    """Return every metric in the end, for the unedited model and for each way of editing."""
    metrics = {
        name
        for one in view.series
        for track in one.tracks
        for p in track.points
        for name in p.means
    }
    measures = all_measures(metrics)
    if not measures:
        return element("p", "No judgement has been made.", class_="note")
    heads = ["metric", "unedited", *(cut(one.label, _NAME) for one in view.series)]
    rows = [_ending(measure, view) for measure in measures[:most]]
    rest = len(measures) - most
    return joined(
        [
            table(heads, rows, "Every metric in the end"),
            element("p", more(rest, "metric"), class_="note") if rest > 0 else "",
        ]
    )


def costs(cells: Sequence[CellRecord], most: int) -> Html:
    """Return what the edits of each cell cost."""
    heads = [
        "cell",
        "made by",
        "edits made",
        "in force",
        "s per edit",
        "editing",
        "judging",
        "memory",
    ]
    rows = [_cost(cell) for cell in cells[:most]]
    rest = len(cells) - most
    return joined(
        [
            table(heads, rows, "What the edits cost", left=2),
            element("p", more(rest, "cell"), class_="note") if rest > 0 else "",
        ]
    )


def relations(view: View, metric: str | None, most: int) -> Html | None:
    """Return reliability by relation, worst first; None where no request names one."""
    if metric is None:
        return None
    found = _by_relation(view, metric)
    if not found:
        return None
    ordered = sorted(found, key=lambda one: (one.worst, one.name))
    heads = ["relation", "edits", *(cut(one.label, _NAME) for one in view.series)]
    rows = [
        [foreign(one.name, _NAME), f"{one.edits:,}", *map(_share, one.means)]
        for one in ordered[:most]
    ]
    rest = len(ordered) - most
    return joined(
        [
            table(
                heads, rows, "Reliability by relation", shares=[one.means for one in ordered[:most]]
            ),
            element("p", more(rest, "relation"), class_="note") if rest > 0 else "",
        ]
    )


@frozen(kw_only=True)
class _Relation:
    """A relation, how many edits it has, and their mean for each way of editing; NaN where there is none."""

    name: str
    edits: int
    means: tuple[float, ...]

    @property
    def worst(self) -> float:
        return min((one for one in self.means if isfinite(one)), default=2.0)


def relation_names(cells: Sequence[CellRecord]) -> dict[str, str]:
    """Return the relation of each request that names one, by its id."""
    found: dict[str, str] = {}
    for cell in cells:
        for edit in cell.edits:
            for request in edit.requests:
                names = (request.extra.get(key) for key in ("relation", "relation_id"))
                for name in names:
                    if isinstance(name, str) and name.strip():
                        found.setdefault(request.id, name)
    return found


def _by_relation(view: View, metric: str) -> list[_Relation]:
    names = relation_names([track.cell for one in view.series for track in one.tracks])
    sums = [_sums(one, names, metric, view) for one in view.series]
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return [
        _Relation(
            name=name,
            edits=edits,
            means=tuple(
                total / number if number else nan
                for total, number in (one.get(name, (0.0, 0)) for one in sums)
            ),
        )
        for name, edits in counts.items()
    ]


def _sums(
    series: Series, names: Mapping[str, str], metric: str, view: View
) -> dict[str, tuple[float, int]]:
    """Return sum and count of the scores of each relation: in the end, or over all windows."""
    found: dict[str, tuple[float, int]] = {}
    for track in series.tracks:
        for point in track.points[-1:] if view.cumulative else track.points:
            for score in point.judgement.report.scores:
                name = names.get(score.request or "")
                if score.metric == metric and name is not None and isfinite(score.value):
                    total, number = found.get(name, (0.0, 0))
                    found[name] = total + score.value, number + 1
    return found


def _cells(row: Sequence[str], left: int, shares: Sequence[float]) -> Iterator[Html]:
    yield element("th", row[0], scope="row")
    plain = len(row) - len(shares)
    for place, one in enumerate(row[1:], start=1):
        share = shares[place - plain] if place >= plain else nan
        if isfinite(share):
            wide = f"--v:{100 * min(max(share, 0.0), 1.0):.0f}"
            yield element("td", element("span", one), class_="n bar", style=wide)
        else:
            yield element("td", one, class_=None if place < left else "n")


def _ending(measure: Measure, view: View) -> list[str]:
    before = baseline(view.series, measure.metric)
    ends = [ending(one, measure.metric, view) for one in view.series]
    best = _best([one for one in ends if one is not None and one.finite], measure)
    name = element("span", measure.title, class_="name")
    code = element("span", _breakable(cut(measure.metric, _NAME)), class_="code")
    same = measure.title.lower() == measure.metric
    return [
        joined([name, code]) if measure.about and not same else name,
        "–" if before is None else measure.said(before),
        *(_value(one, measure.said, best) for one in ends),
    ]


def _breakable(metric: str) -> Html:
    """Return a metric's name that may go on in a new line behind its dots and colons."""
    return joined(
        joined([one, element("wbr")]) if one in ".:" else one
        for one in re.split("([.:])", metric)
        if one
    )


def _best(ends: Sequence[Reading], measure: Measure) -> float | None:
    """Return the best end; None where nobody knows what is better, or streams came unequally far."""
    values = {one.value for one in ends}
    if len(values) < 2 or measure.rises is None or len({one.at for one in ends}) > 1:
        return None
    return max(values) if measure.rises else min(values)


def _value(one: Reading | None, said: Callable[[float], str], best: float | None) -> str:
    if one is None:
        return "–"
    if not one.finite:
        return "not finite"
    shown = element("b", said(one.value)) if one.value == best else html(said(one.value))
    if one.orders == 1 or one.low == one.high:
        return shown
    spread = f"{said(one.low)} to {said(one.high)}"
    return joined([shown, element("span", spread, class_="spread")])


def _share(value: float) -> str:
    return wording.percent(value) if isfinite(value) else "–"


def _cost(cell: CellRecord) -> list[str]:
    made = sum(len(one.requests) for one in cell.edits)
    spent = sum(one.seconds for one in cell.edits)
    judged = sum(one.report.seconds for one in cell.judgements)
    memory = max((one.peak_memory for one in cell.edits), default=0)
    versions = dict.fromkeys(one.version for one in cell.edits)
    return [
        foreign(cell.name, _NAME),
        foreign(", ".join(versions) or cell.method, _NAME),
        f"{made:,}" if made == cell.requests else f"{made:,} of {cell.requests:,}",
        f"{sum(len(one.requests) for one in cell.edits if one.in_force):,}",
        wording.quantity(spent / made) if made else "–",
        wording.seconds(spent),
        wording.seconds(judged),
        wording.memory(memory) if memory else "–",
    ]
