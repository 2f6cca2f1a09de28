"""The forgetting matrix as a picture: edits from left to right, later judgements further down."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from math import isfinite, isnan

from kedit_lab.report.forgetting import Forgetting
from kedit_lab.report.markup import Html, cut, element
from kedit_lab.report.tracks import Series
from kedit_lab.report.wording import count, percent

LEVELS = 10
_WIDTH, _LEFT, _TOP, _SIDE = 360, 44, 20, 300


def heat_map(series: Series, found: Forgetting) -> Html:
    """Return the figure of a forgetting matrix: one path for each shade, and its areas as a sentence."""
    rows, columns = len(found.rows), len(found.blocks) - 1
    height = _SIDE if rows > 12 else max(60, 25 * rows)
    shades = element(
        "g",
        *_paths(found),
        transform=f"translate({_LEFT} {_TOP}) scale({_SIDE / columns:.5g} {height / rows:.5g})",
    )
    drawing = element(
        "svg",
        shades,
        *_axes(found, height),
        viewBox=f"0 0 {_WIDTH} {_TOP + height + 22}",
        role="img",
        aria_label=f"Forgetting matrix of {cut(series.label, 60)}: {_areas(found)}",
        data_box=f"{_LEFT} {_TOP} {_SIDE} {height}",
        data_rows=" ".join(map(str, found.rows)),
        data_blocks=" ".join(map(str, found.blocks)),
        data_cells=" ".join("".join(map(_digits, row)) for row in found.cells),
    )
    return element(
        "figure",
        element("figcaption", element("h3", cut(series.label, 60))),
        drawing,
        element("p", _areas(found), class_="note"),
        class_="matrix",
        data_series=series.colour,
    )


def key() -> Html:
    """Return what the shades mean."""
    shades = [element("i", class_=f"m{level}") for level in range(LEVELS)]
    return element(
        "p",
        "0" + "\N{NARROW NO-BREAK SPACE}%",
        element("span", *shades, class_="shades", aria_hidden="true"),
        "100" + "\N{NARROW NO-BREAK SPACE}% hold",
        class_="key",
    )


def _paths(found: Forgetting) -> Iterator[Html]:
    """Yield per shade one path of horizontal strokes; neighbours of one shade are one stroke."""
    strokes: dict[int, list[str]] = defaultdict(list)
    for row, cells in enumerate(found.cells):
        column = 0
        for level, run in groupby(cells, key=_level):
            wide = len(list(run))
            if level is not None:
                strokes[level].append(f"M{column} {row}.5h{wide}")
            column += wide
    for level, parts in sorted(strokes.items()):
        yield element("path", class_=f"m{level}", d="".join(parts))


def _level(value: float) -> int | None:
    return None if isnan(value) else min(int(max(value, 0.0) * LEVELS), LEVELS - 1)


def _digits(value: float) -> str:
    return f"{round(100 * min(max(value, 0.0), 1.0)):02x}" if isfinite(value) else "--"


def _axes(found: Forgetting, height: float) -> Iterator[Html]:
    rows, edits = len(found.rows), found.blocks[-1]
    shown = sorted({0, rows // 2, rows - 1} if rows > 8 else set(range(rows)))
    for row in shown:
        y = _TOP + height * (row + 0.5) / rows + 4
        said = f"{found.rows[row]:,}"
        yield element("text", said, class_="tick", x=_LEFT - 6, y=y, text_anchor="end")
    below = _TOP + height + 16
    yield element("text", "first edit", class_="tick", x=_LEFT, y=below)
    last = f"{edits:,}th" if edits % 10 not in {1, 2, 3} else f"no. {edits:,}"
    right = _LEFT + _SIDE
    yield element("text", last, class_="tick", x=right, y=below, text_anchor="end")
    middle = _LEFT + _SIDE / 2
    yield element(
        "text", "in the order made", class_="tick", x=middle, y=below, text_anchor="middle"
    )
    yield element("text", "↓ judged after so many edits", class_="tick", x=2, y=11)


def _areas(found: Forgetting) -> str:
    """Return what the matrix comes to, as sentences."""
    mean = f" Mean of {count(found.orders, 'order')}." if found.orders > 1 else ""
    return (
        f"{percent(found.fresh)} held when first judged, {percent(found.final)} at the end, on average since "
        f"they were made {percent(found.area)} (the area).{mean}"
    )
