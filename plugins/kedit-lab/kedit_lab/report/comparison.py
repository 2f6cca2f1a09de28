"""One view of a run: its charts, its forgetting matrices and its tables."""

from collections.abc import Iterator

from attrs import evolve, frozen

from kedit_lab.report import tables
from kedit_lab.report.forgetting import forgetting
from kedit_lab.report.heat_map import heat_map, key
from kedit_lab.report.line_chart import chart
from kedit_lab.report.markup import Html, element, joined
from kedit_lab.report.measures import drawn, of_axis
from kedit_lab.report.tracks import View
from kedit_lab.report.verdict import manner, verdict


@frozen(kw_only=True)
class Detail:
    """How much of a run fits a page.

    Attributes:
        views: that can be chosen from.
        series: ways of editing in a view.
        points: of a line.
        blocks: rows and columns of a forgetting matrix.
        rows: of a table.
        examples: of each kind.
        text: characters of an example.
    """

    views: int = 12
    series: int = 12
    points: int = 48
    blocks: int = 60
    rows: int = 30
    examples: int = 6
    text: int = 240


def comparison(view: View, place: int, shown: bool, told: bool, detail: Detail) -> Html:
    """Return the section of a view.

    Args:
        view: what is compared.
        place: of the view among those that can be chosen.
        shown: it is the one that is open at first.
        told: its verdict is said here, and not above.
        detail: how much of it fits.
    """
    rest = len(view.series) - detail.series
    fitting = evolve(view, series=view.series[: detail.series])
    note = f"Shown are the first {detail.series}; {tables.more(rest, 'way')} of editing."
    return element(
        "section",
        element("h2", view.name) if view.name else "",
        element("p", joined([verdict(view), " "] if told else []), manner(view), class_="about"),
        element("p", note, class_="note") if rest > 0 else "",
        _charts(fitting, detail),
        *_matrices(fitting, detail),
        element("div", _endings(fitting, detail), *_relations(fitting, detail), class_="tables"),
        class_="view",
        data_view=place,
        hidden=not shown,
    )


def _metrics(view: View) -> set[str]:
    tracks = (track for one in view.series for track in one.tracks)
    return {name for track in tracks for point in track.points for name in point.means}


def _charts(view: View, detail: Detail) -> Html:
    found = [chart(view, one, detail.points) for one in drawn(_metrics(view))]
    charts = [one for one in found if one is not None]
    if not charts:
        return element(
            "p", "No judgement has been made, so there is no line to draw.", class_="note"
        )
    return element("div", *charts, class_="charts")


def _matrices(view: View, detail: Detail) -> Iterator[Html]:
    """Yield the forgetting matrices, or why there are none."""
    yield element("h2", "What later edits do to earlier ones")
    main = of_axis("reliability", _metrics(view))
    if not view.cumulative:
        yield element(
            "p",
            "Each judgement was of the newest edits only, so nothing is known about forgetting; "
            'evaluate_on = "all" asks for it.',
            class_="note",
        )
        return
    found = [(one, forgetting(one, main, view, detail.blocks)) for one in view.series if main]
    maps = [heat_map(one, matrix) for one, matrix in found if matrix is not None]
    if not maps:
        said = "All edits were judged once, so nothing is known about forgetting."
        yield element("p", said if main else "Whether edits hold was not measured.", class_="note")
        return
    yield element(
        "p",
        "Each row is a judgement of all edits made until then, each column a block of edits in the order "
        "made. An edit that is forgotten turns from blue to orange further down.",
        class_="about",
    )
    yield key()
    yield element("div", *maps, class_="charts")


def _endings(view: View, detail: Detail) -> Html:
    said = "Means over all judgements; perplexity and drift are those of the last one."
    return element(
        "div",
        element("h2", "In the end" if view.cumulative else "On average"),
        element("p", "At the last judgement." if view.cumulative else said, class_="about"),
        tables.endings(view, detail.rows),
    )


def _relations(view: View, detail: Detail) -> Iterator[Html]:
    found = tables.relations(view, of_axis("reliability", _metrics(view)), detail.rows)
    if found is not None:
        about = element("p", "Share of the edits that hold; the weakest first.", class_="about")
        yield element("div", element("h2", "By relation"), about, found)
