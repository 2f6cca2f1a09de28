"""What was asked and what came of it, in sentences that the figures bear out."""

from collections.abc import Iterator, Sequence
from math import isfinite

from attrs import frozen

from kedit_core.run_records import CellRecord, RunRecord
from kedit_lab.report.lines import Reading, baseline, ending
from kedit_lab.report.markup import cut
from kedit_lab.report.measures import of_axis
from kedit_lab.report.tracks import View, labels_of
from kedit_lab.report.wording import count, editing, in_words, judging, listed, name, percent

_REASON = 300
_MOST = 8  # sentences about cells that did not go as planned


@frozen(kw_only=True)
class _Standing:
    """How one way of editing ends.

    Attributes:
        label: what it is called.
        value: its reliability in the end.
    """

    label: str
    value: Reading


def headline(run: RunRecord) -> str:
    """Return what was asked: models, methods, number of edits, schedule."""
    if not run.cells:
        return "A run without cells"
    models = [name(one) for one in dict.fromkeys(cell.model for cell in run.cells)]
    labels = [name(one, 30) for one in labels_of(run)]
    ways = list(dict.fromkeys(editing(cell.schedule) for cell in run.cells))
    who = listed(labels) if len(labels) < 5 else f"{in_words(len(labels))} ways of editing"
    how = ways[0] if len(ways) == 1 else f"in {in_words(len(ways))} manners"
    counts = [cell.requests for cell in run.cells]
    few, many = min(counts), max(counts)
    edits = count(many, "edit") if few == many else f"{few:,} to {count(many, 'edit')}"
    manner = "" if many == 1 else f", {how}"
    return f"{edits} of {listed(models, most=3)}{manner}: {who}"


def manner(view: View) -> str:
    """Return how a view was judged, and in how many orders."""
    orders = max(len(one.tracks) for one in view.series)
    several = f" {in_words(orders).capitalize()} orders of the edits." if orders > 1 else ""
    points = max(len(track.points) for one in view.series for track in one.tracks)
    once = points == 1 and view.cumulative
    said = "judged once, at the end" if once else judging(view.schedule, view.interval)
    return f"{said[0].upper()}{said[1:]}.{several}"


def verdict(view: View) -> str:
    """Return what came of it, in one or two sentences."""
    metrics = {
        metric
        for one in view.series
        for track in one.tracks
        for p in track.points
        for metric in p.means
    }
    if not metrics:
        return "Nothing has been judged yet."
    main = of_axis("reliability", metrics)
    if main is None:
        return "Whether the edits hold was not measured; the charts show what was."
    ended = [(one.label, ending(one, main, view)) for one in view.series]
    known = [_Standing(label=name(label), value=one) for label, one in ended if one is not None]
    finite = [one for one in known if one.value.finite]
    if not finite:
        return "The scores of the edits are not finite: no verdict can be given."
    said = _alone(finite[0], view) if len(view.series) == 1 else _compared(finite, view)
    silent = [name(label) for label, one in ended if one is None or not one.finite]
    if silent:
        said += f" Of {listed(silent)} there is no such score."
    beside = _beside(view, metrics)
    return f"{said} {beside}".strip()


def troubles(run: RunRecord) -> list[str]:
    """Return what did not go as planned, a sentence each: stops, limits, cells without an end or a start."""
    said = list(dict.fromkeys(one for cell in run.cells for one in _trouble(cell)))
    if run.cells and all(cell.before is None for cell in run.cells):
        said.append("The unedited model was not measured, so nothing here is compared with it.")
    elif any(cell.before is None for cell in run.cells):
        named = [_name(cell) for cell in run.cells if cell.before is None]
        said.append(f"Without a baseline of the unedited model: {listed(named)}.")
    if len(said) > _MOST:
        rest = len(said) - _MOST + 1
        said = [*said[: _MOST - 1], f"… and {rest:,} more of this kind."]
    return said


def _trouble(cell: CellRecord) -> Iterator[str]:
    who, made = _name(cell), sum(len(one.requests) for one in cell.edits)
    if cell.stopped:
        reason = cut(cell.stopped, _REASON).rstrip(".")
        yield f"{who} was stopped after {made:,} of {count(cell.requests, 'edit')}: {reason}."
    elif not cell.finished:
        yield f"{who} is not finished: {made:,} of {count(cell.requests, 'edit')} made."
    elif not cell.judgements:
        yield f"{who} was not judged."
    yield from _not_finite(cell, who)
    broken = [breach for one in cell.judgements for breach in one.breaches]
    if broken and not cell.stopped:
        yield f"{who} broke {count(len(broken), 'limit')}, first after {count(broken[0].at, 'edit')}."


def _not_finite(cell: CellRecord, who: str) -> Iterator[str]:
    first: dict[str, int] = {}
    for judgement in cell.judgements:
        for score in judgement.report.scores:
            if not isfinite(score.value):
                first.setdefault(score.metric.partition(":")[0], judgement.at)
    for metric, at in first.items():
        yield f"{who}: {name(metric)} was not finite after {count(at, 'edit')}."


def _name(cell: CellRecord) -> str:
    """Return what a sentence calls a cell: its own name where its label alone does not say the order."""
    return name(cell.label) if cell.seed is None else f"{name(cell.label)} (seed {cell.seed})"


def _alone(one: _Standing, view: View) -> str:
    value, edits = one.value, one.value.at
    if edits == 1 and value.value in (0.0, 1.0):
        return "The edit holds." if value.value else "The edit does not hold."
    if value.value == 1.0:
        return f"All {edits:,} edits hold{_when(view)}."
    if value.value == 0.0:
        return f"None of {edits:,} edits holds{_when(view)}."
    return f"{percent(value.value)} of {count(edits, 'edit')} hold{_when(view)}."


def _compared(ended: Sequence[_Standing], view: View) -> str:
    """Return who keeps most, and who least; ways of editing that ended elsewhere are not ranked."""
    edits = {one.value.at for one in ended}
    if len(edits) > 1:
        each = [
            f"{one.label} keeps {percent(one.value.value)} of {count(one.value.at, 'edit')}"
            for one in ended
        ]
        return f"Not every stream came as far: {listed(each, most=8)}."
    whole = f"{count(edits.pop(), 'edit')}{_when(view)}"
    best, worst = max(one.value.value for one in ended), min(one.value.value for one in ended)
    first = [one.label for one in ended if one.value.value == best]
    last = [one.label for one in ended if one.value.value == worst]
    if len(ended) == 1:
        return f"{first[0]} keeps {percent(best)} of {whole}."
    if best == worst:
        return f"{listed(first)} keep {percent(best)} of {whole} alike."
    fewest = " fewest," if len(ended) > 2 else ""
    return (
        f"{listed(first)} {_keeps(first)} most, {percent(best)} of {whole}; "
        f"{listed(last)} {_keeps(last)}{fewest} {percent(worst)}."
    )


def _keeps(several: Sequence[str]) -> str:
    return "keeps" if len(several) == 1 else "keep"


def _when(view: View) -> str:
    """Return over how many orders a figure is the mean, and when it was taken."""
    orders = max(len(one.tracks) for one in view.series)
    mean = f" (mean of {in_words(orders)} orders)" if orders > 1 else ""
    if view.cumulative:
        return mean
    late = "when just made" if view.schedule.keep else "while they are in force"
    return f" {late}{mean}"


def _beside(view: View, metrics: set[str]) -> str:
    """Return what became of the neighbours: as before where that was measured, else against the baseline."""
    chosen = _neighbours(metrics)
    if chosen is None:
        return "Neighbours were not asked."
    ends = [(name(one.label), ending(one, chosen, view)) for one in view.series]
    finite = [(one.value, who) for who, one in ends if one is not None and one.finite]
    if not finite:
        return "There is no finite score of neighbours."
    said = "as before" if ".unchanged" in chosen else "right"
    named = [
        f"{percent(value)} {said}{f' with {who}' if len(ends) > 1 else ''}" for value, who in finite
    ]
    if len(finite) > 3:
        (low, worst), (high, best) = min(finite), max(finite)
        named = [f"{percent(high)} {said} at best ({best})", f"{percent(low)} at worst ({worst})"]
    start = None if said != "right" else baseline(view.series, chosen)
    named += [] if start is None else [f"{percent(start)} unedited"]
    return f"Neighbours: {', '.join(named)}."


def _neighbours(metrics: set[str]) -> str | None:
    """Return the metric that says how the neighbours are."""
    names = [
        f"locality.{kind}{group}" for kind in ("unchanged", "exact") for group in (":near", "")
    ]
    other = of_axis("locality", metrics)
    found = next((one for one in [*names, other] if one in metrics), None)
    return None if found == "locality.kl" else found
