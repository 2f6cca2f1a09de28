"""What a reader needs in order to judge a run and to repeat it: limits, conflicts, plan, machine."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

from kedit_core.run_records import CellRecord, RunRecord
from kedit_lab.report.markup import Html, cut, element, foreign, joined
from kedit_lab.report.plan_text import plan_text
from kedit_lab.report.tables import more, table
from kedit_lab.report.wording import quantity

_NAME, _SENTENCE = 60, 300


def limits(run: RunRecord, most: int) -> Html | None:
    """Return the limits that were broken; None where none was."""
    rows = [row for cell in run.cells for row in _breaches(cell)]
    if not rows:
        return None
    heads = ["cell", "limit", "allowed", "found", "after edit", "last good after"]
    rest = len(rows) - most
    return joined(
        [
            table(heads, rows[:most], "Limits that were broken", left=2),
            element("p", more(rest, "broken limit"), class_="note") if rest > 0 else "",
        ]
    )


def conflicts(run: RunRecord, most: int) -> Html | None:
    """Return how conflicts between requests were settled; None where there was none."""
    why = list(dict.fromkeys((one.kind, one.why) for cell in run.cells for one in cell.decisions))
    if not why:
        return None
    said = [
        element("li", element("span", kind, class_="kind"), " ", foreign(sentence, _SENTENCE))
        for kind, sentence in why[:most]
    ]
    if len(why) > most:
        said.append(element("li", more(len(why) - most, "conflict")))
    return element("ul", *said, class_="plain")


def machine(run: RunRecord) -> Html:
    """Return hardware and versions."""
    return element(
        "dl",
        *_terms(run.machine),
        *_terms(run.versions),
    )


def plan(run: RunRecord, most: int) -> Html:
    """Return the plan as text, and the commands that make this run and this page."""
    lines = plan_text(run.plan).splitlines() or ["# the plan is empty"]
    if len(lines) > most:
        lines = [*lines[:most], f"# {more(len(lines) - most, 'line')}"]
    name = cut(run.folder.name or "RUN", 80)
    commands = f"kedit run plan.toml\nkedit lab report {_quoted(name)} --out report.html"
    return joined(
        [
            element("pre", "\n".join(cut_line(one) for one in lines), tabindex=0),
            element("p", "With this plan as plan.toml, these commands make the run and this page:"),
            element("pre", commands, tabindex=0),
        ]
    )


def cut_line(line: str) -> str:
    """Return a line of a plan that is not wider than a page can bear; blanks at its start stay."""
    return line if len(line) <= 200 else f"{line[:199]}…"


def _breaches(cell: CellRecord) -> Iterator[Sequence[str]]:
    for judgement in cell.judgements:
        for one in judgement.breaches:
            yield [
                foreign(cell.name, _NAME),
                foreign(one.limit, _NAME),
                quantity(one.allowed) if isfinite(one.allowed) else "–",
                quantity(one.found),
                f"{one.at:,}",
                f"{one.since:,}",
            ]


def _terms(words: Mapping[str, str]) -> Iterator[Html]:
    shown = list(words.items())[:24]
    for name, value in shown:
        yield element(
            "div", element("dt", cut(name, _NAME)), element("dd", foreign(str(value), 120))
        )


def _quoted(name: str) -> str:
    plain = all(one.isalnum() or one in "-_." for one in name)
    return name if plain else "'" + name.replace("'", "'\\''") + "'"
