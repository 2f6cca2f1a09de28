"""How one way of editing looks in a chart: its line, its spread over orders, its points."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from kedit_lab.report.lines import Reading
from kedit_lab.report.markup import Html, element
from kedit_lab.report.plot import TOP, Line, Plot
from kedit_lab.report.wording import hundredths, quantity


def line_marks(plot: Plot, line: Line) -> Html:
    """Return a line with what the read-out says of it."""
    places = {one.at: one for one in line.readings}
    said = [_said(plot, line, places.get(at)) for at in plot.ats]
    if plot.slope:
        said.insert(0, "" if plot.before is None else _plain(plot, plot.before))
    return element(
        "g",
        *_band(plot, line),
        *_strokes(plot, line),
        *_dots(plot, line),
        class_=f"line s{line.colour % 8}" + (" again" if line.colour >= 8 else ""),
        data_series=line.colour,
        data_label=line.label,
        data_said="|".join(said),
    )


def _said(plot: Plot, line: Line, one: Reading | None) -> str:
    """Return what the read-out takes apart: value, lowest and highest order, how many orders."""
    if one is None:
        return ""
    if not one.finite:
        return "×"
    if line.orders == 1:
        return _plain(plot, one.value)
    parts = [_plain(plot, value) for value in (one.value, one.low, one.high)]
    fewer = [] if one.orders == line.orders else [f"{one.orders} of {line.orders} orders"]
    return ";".join([*parts, *fewer])


def _plain(plot: Plot, value: float) -> str:
    return hundredths(value) if plot.measure.share else quantity(value)


def _band(plot: Plot, line: Line) -> Iterator[Html]:
    """Yield the spread over orders: one piece for each stretch of finite readings."""
    for piece in _stretches(line.readings):
        if all(one.low == one.high for one in piece):
            continue
        x = [plot.place(one.at) for one in piece]
        upper = [(a, plot.y(one.high)) for a, one in zip(x, piece, strict=True)]
        lower = [(a, plot.y(one.low)) for a, one in zip(x, piece, strict=True)]
        if len(piece) == 1:
            yield element("path", class_="range", d=_path([*upper, *lower]))
        else:
            yield element("path", class_="band", d=_path([*upper, *reversed(lower)]) + "z")


def _strokes(plot: Plot, line: Line) -> Iterator[Html]:
    for piece in _stretches(line.readings):
        points = [(plot.place(one.at), plot.y(one.value)) for one in piece]
        if plot.slope and plot.before is not None:
            points.insert(0, (plot.x(0), plot.y(plot.before)))
        if len(points) > 1:
            yield element("path", class_="stroke", d=_path(points))


def _dots(plot: Plot, line: Line) -> Iterator[Html]:
    """Yield the points where they are few or stand alone, and a cross at the top for what is not finite."""
    dots = [
        f"M{plot.place(one.at):g} {plot.y(one.value):g}h0"
        for piece in _stretches(line.readings)
        for one in piece
        if plot.few or len(piece) == 1
    ]
    if dots:
        yield element("path", class_="dot wide-dot" if plot.slope else "dot", d="".join(dots))
    lost = [plot.place(one.at) for one in line.readings if not one.finite]
    if lost:
        crosses = "".join(f"M{x - 3:g} {TOP - 7}l6 6m0-6l-6 6" for x in lost)
        yield element("path", class_="lost", d=crosses)


def _stretches(found: Sequence[Reading]) -> Iterator[list[Reading]]:
    """Yield runs of readings that can be drawn; the others are gaps."""
    for finite, run in groupby(found, key=lambda one: one.finite):
        if finite:
            yield list(run)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
