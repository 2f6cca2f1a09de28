"""One metric against the number of edits, a line for each way of editing, as SVG."""

from collections.abc import Iterator, Sequence

from attrs import frozen

from kedit_lab.report.line_marks import line_marks
from kedit_lab.report.lines import baseline, readings, thinned
from kedit_lab.report.markup import Html, cut, element, html
from kedit_lab.report.measures import Measure
from kedit_lab.report.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, Plot, plot
from kedit_lab.report.scales import spread_out
from kedit_lab.report.tracks import View
from kedit_lab.report.wording import PERCENT, count, listed, tick

_APART = 12.5  # between values at the ends of lines
_UNEDITED = "unedited"


@frozen(kw_only=True)
class _End:
    """The value that is written behind the end of a line.

    Attributes:
        x: where the line ends.
        value: its last.
        class_: of the text.
        colour: of the line; None for the unedited model.
    """

    x: float
    value: float
    class_: str
    colour: int | None


def chart(view: View, measure: Measure, most: int) -> Html | None:
    """Return the chart of a metric, or None where no judgement has it.

    Args:
        view: whose ways of editing are compared.
        measure: what is drawn.
        most: points of a line.
    """
    lines = [
        Line(
            label=cut(one.label, 60),
            colour=one.colour,
            orders=len(one.tracks),
            readings=thinned(readings(one, measure.metric), most, view, measure.metric),
        )
        for one in view.series
    ]
    lines = [line for line in lines if line.readings]
    if not lines:
        return None
    asked = max(track.cell.requests for one in view.series for track in one.tracks)
    before = baseline(view.series, measure.metric)
    return _Chart(plot(lines, measure, before, asked, bool(view.schedule.stages))).figure()


class _Chart:
    """Draws what stands around the lines."""

    def __init__(self, plot: Plot) -> None:
        self._plot, self._measure, self._before = plot, plot.measure, plot.before

    def figure(self) -> Html:
        """Return the figure: title, drawing, and what cannot be drawn as a sentence."""
        measure = self._measure
        about = measure.about + (" (logarithmic)" if self._plot.y.logarithmic else "")
        return element(
            "figure",
            element(
                "figcaption",
                element("h3", cut(measure.title, 60)),
                element("p", html(about.strip()), class_="about"),
            ),
            self._drawing(),
            *self._notes(),
            class_="chart",
        )

    def _drawing(self) -> Html:
        places = [f"{self._plot.place(at):g}" for at in self._plot.ats]
        ats = [*([0] if self._plot.slope else []), *self._plot.ats]
        if self._plot.slope:
            places.insert(0, f"{self._plot.x(0):g}")
        return element(
            "svg",
            *self._rules(),
            *self._unedited(),
            *(line_marks(self._plot, line) for line in self._plot.lines),
            *self._ends(),
            element("line", class_="cursor", y1=TOP, y2=BOTTOM, x1=0, x2=0, hidden=True),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=self._in_words(),
            tabindex=0,
            data_x=" ".join(places),
            data_at=" ".join(map(str, ats)),
            data_unit=PERCENT if self._measure.share else "",
        )

    def _rules(self) -> Iterator[Html]:
        """Yield the lines across and the ticks of both axes."""
        values = [(self._plot.y(value), value) for value in self._plot.y.ticks(4)]
        across = "".join(f"M{LEFT} {y:g}H{RIGHT}" for y, _ in values)
        yield element("path", class_="rule", d=across)
        shown = (_text(LEFT - 6, y + 4, tick(one, self._measure.share)) for y, one in values)
        yield element("g", *shown, class_="tick", text_anchor="end")
        base = BOTTOM + 17
        if self._plot.slope:
            said = f"after {count(self._plot.ats[0], 'edit')}"
            yield element("g", _text(LEFT, base, _UNEDITED), class_="tick")
            yield element("g", _text(RIGHT, base, said), class_="tick", text_anchor="end")
            return
        places = [(self._plot.x(at), at) for at in self._along_ticks()]
        marks = "".join(f"M{x:g} {BOTTOM}v4" for x, _ in places)
        yield element("path", class_="mark", d=marks)
        figures = (_text(x, base, f"{at:,.0f}") for x, at in places)
        yield element("g", *figures, class_="tick", text_anchor="middle")
        yield element("g", _text(WIDTH + 6, base, "edits"), class_="tick", text_anchor="end")

    def _along_ticks(self) -> Sequence[float]:
        ats = self._plot.ats
        if self._plot.x.logarithmic:
            return ats if len(ats) < 6 else [ats[0], ats[-1]]
        whole = [at for at in self._plot.x.ticks(4) if at == int(at)]
        return whole or [ats[-1]]

    def _unedited(self) -> Iterator[Html]:
        """Yield the line of the unedited model, where it is known and no line starts from it."""
        if self._before is not None and not self._plot.slope:
            y = self._plot.y(self._before)
            yield element("line", class_="before", x1=LEFT, x2=RIGHT, y1=y, y2=y)

    def _ends(self) -> Iterator[Html]:
        """Yield the last value of each line behind its end, moved apart where they would touch."""
        ends = [self._end(line) for line in self._plot.lines if line.finite]
        if self._before is not None and not self._plot.slope:
            ends.append(_End(x=RIGHT, value=self._before, class_="end", colour=None))
        for early in (True, False):
            own = [one for one in ends if (one.x < RIGHT - 40) == early]
            places = spread_out([self._plot.y(one.value) for one in own], _APART, TOP - 4, BOTTOM)
            for one, y in zip(own, places, strict=True):
                shown = self._measure.said(one.value)
                x = one.x + 7 if early else RIGHT + 5
                yield element(
                    "text", shown, class_=one.class_, x=x, y=y + 4, data_series=one.colour
                )

    def _end(self, line: Line) -> _End:
        last = line.finite[-1]
        return _End(
            x=self._plot.place(last.at),
            value=last.value,
            class_=f"end s{line.colour % 8}",
            colour=line.colour,
        )

    def _notes(self) -> Iterator[Html]:
        lost = sum(not one.finite for line in self._plot.lines for one in line.readings)
        if lost:
            were = "is" if lost == 1 else "are"
            said = f"{count(lost, 'point')} {were} not finite (×) and cannot be drawn."
            yield element("p", said, class_="note")

    def _in_words(self) -> str:
        """Return the chart as a sentence."""
        said = []
        for line in self._plot.lines:
            if not line.finite:
                said.append(f"{line.label} is nowhere finite")
                continue
            first, last = line.finite[0], line.finite[-1]
            ends = f"{self._measure.said(last.value)} after {count(last.at, 'edit')}"
            moved = "" if first is last else f"{self._measure.said(first.value)} at first and "
            said.append(f"{line.label} {moved}{ends}")
        known = self._before is not None
        if known:
            said.append(f"{_UNEDITED} {self._measure.said(self._before or 0.0)}")
        return f"{self._measure.title}: {listed(said, most=12)}."


def _text(x: float, y: float, words: str) -> Html:
    return element("text", words, x=x, y=y)
