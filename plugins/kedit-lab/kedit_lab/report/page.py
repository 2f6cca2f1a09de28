"""The page: what was asked, the verdict, one section for each comparison, examples, and the plan."""

import base64
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.resources import files
from string import Template

from kedit_core.run_records import RunRecord
from kedit_lab.report import colophon, tables, wording
from kedit_lab.report.comparison import Detail, comparison
from kedit_lab.report.examples import examples
from kedit_lab.report.markup import Html, cut, element, html, joined
from kedit_lab.report.tracks import View, labels_of, views_of
from kedit_lab.report.verdict import headline, troubles, verdict

LARGEST = 300_000
"""Bytes that a page may have."""

_DETAILS = (
    Detail(),
    Detail(points=32, blocks=40),
    Detail(points=20, blocks=24, rows=20, examples=4),
    Detail(points=14, blocks=16, rows=12, examples=3, text=120),
    Detail(views=8, series=8, points=10, blocks=12, rows=12, examples=2, text=80),
    Detail(views=6, series=6, points=8, blocks=8, rows=10, examples=2, text=80),
    Detail(views=3, series=4, points=6, blocks=6, rows=8, examples=1, text=60),
)
_PLAN_LINES = 120


def page(run: RunRecord) -> str:
    """Return a run as one HTML file of at most 300 KB that asks nothing of any network.

    Of a large run lines have fewer points, the forgetting matrix larger blocks, and tables end with
    "… and n more".

    Args:
        run: as its journal tells it; finished or not.
    """
    views = views_of(run)
    written = ""
    for detail in _DETAILS:
        written = _written(run, views, detail)
        if len(written.encode()) <= LARGEST:
            break
    return written


def found(run: RunRecord) -> str:
    """Return the verdict alone, of the comparison that is shown first."""
    return _verdict(views_of(run))


def _written(run: RunRecord, views: Sequence[View], detail: Detail) -> str:
    script = _file("script.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return Template(_file("page.html")).substitute(
        # Even if a text were taken for a script, it would neither run nor reach a network.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=html(headline(run)),
        style=_file("style.css"),
        script=script,
        head=_head(run, views),
        comparisons=_comparisons(run, views, detail),
        rest=joined(_rest(run, detail)),
    )


def _file(name: str) -> str:
    return (files("kedit_lab.report") / "templates" / name).read_text(encoding="utf-8")


def _judgements(view: View) -> int:
    """Return how many judgements its longest line has."""
    return max(len(track.points) for way in view.series for track in way.tracks)


def _telling(views: Sequence[View]) -> View:
    """Return the view that the verdict is of: one that says how all edits fare, if there is one."""
    return max(views, key=lambda one: (_judgements(one) > 0, one.cumulative))


def _first(views: Sequence[View]) -> View:
    """Return the view that is open at first: one with lines to look at, but no thicket of points."""
    return max(
        views,
        key=lambda one: (_judgements(one) > 1, one.cumulative, -abs(_judgements(one) - 20)),
    )


def _verdict(views: Sequence[View]) -> str:
    if not views:
        return "Nothing has been done yet."
    first = _telling(views)
    return f"{first.name}: {verdict(first)}" if first.name else verdict(first)


def _head(run: RunRecord, views: Sequence[View]) -> Html:
    begun = wording.date(cut(run.started, 60))
    notes = [element("li", one) for one in troubles(run)]
    return joined(
        [
            element(
                "p",
                f"Knowledge editing · {begun}" if begun else "Knowledge editing",
                class_="kicker",
            ),
            element("h1", headline(run)),
            element("p", _verdict(views), class_="verdict"),
            element("ul", *notes, class_="troubles") if notes else "",
        ]
    )


def _comparisons(run: RunRecord, views: Sequence[View], detail: Detail) -> Html:
    if not views:
        return joined([])
    first, told = _first(views), _telling(views)
    shown = sorted(list(dict.fromkeys([first, *views]))[: detail.views], key=views.index)
    rest = len(views) - len(shown)
    return joined(
        [
            _controls(run, shown, first),
            element("p", tables.more(rest, "comparison"), class_="note") if rest else "",
            *(
                comparison(one, place, one is first, one is not told, detail)
                for place, one in enumerate(shown)
            ),
        ]
    )


def _controls(run: RunRecord, shown: Sequence[View], first: View) -> Html:
    """Return the buttons: which comparison, and which lines."""
    views = [
        element(
            "button",
            one.name,
            type="button",
            data_choose=place,
            aria_pressed=_pressed(one is first),
        )
        for place, one in enumerate(shown)
    ]
    return element(
        "nav",
        element("div", *views, class_="choice", role="group", aria_label="Comparison")
        if len(views) > 1
        else "",
        element(
            "div", *_legend(run, shown), class_="legend", role="group", aria_label="Lines shown"
        ),
        aria_label="What is shown",
    )


def _legend(run: RunRecord, shown: Sequence[View]) -> Iterator[Html]:
    """Yield a button for each way of editing that some chart shows, and what the other lines mean."""
    ways = {one.colour for view in shown for one in view.series}
    for place, label in enumerate(labels_of(run)):
        if place in ways:
            again = " again" if place >= 8 else ""
            swatch = element("i", class_=f"swatch s{place % 8}{again}", aria_hidden="true")
            yield element(
                "button",
                swatch,
                cut(label, 60),
                type="button",
                data_toggle=place,
                aria_pressed="true",
            )
    if any(cell.before is not None for cell in run.cells):
        swatch = element("i", class_="swatch dashed", aria_hidden="true")
        yield element("span", swatch, "unedited model")
    if any(len(one.tracks) > 1 for view in shown for one in view.series):
        swatch = element("i", class_="swatch shaded", aria_hidden="true")
        yield element("span", swatch, "lowest to highest order")


def _pressed(on: bool) -> str:
    return "true" if on else "false"


def _rest(run: RunRecord, detail: Detail) -> Iterator[Html]:
    """Yield what does not depend on the comparison."""
    parts = (
        ("Before and after", examples(run, detail.examples, detail.text)),
        ("Limits broken", colophon.limits(run, detail.rows)),
        ("Conflicts decided", colophon.conflicts(run, detail.rows)),
        ("What it cost", tables.costs(run.cells, detail.rows) if run.cells else None),
        ("How to repeat it", colophon.plan(run, _PLAN_LINES)),
        ("Machine and versions", colophon.machine(run)),
    )
    for title, body in parts:
        if body is not None:
            yield element("section", element("h2", title), body)
