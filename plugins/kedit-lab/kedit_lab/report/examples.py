"""What the model said before and says after, word for word."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from attrs import frozen

from kedit_core.run_records import CellRecord, Example, RunRecord
from kedit_lab.report.markup import Html, cut, element, foreign, joined
from kedit_lab.report.tables import more

_KINDS = {
    "edit": ("Edited", "should say"),
    "paraphrase": ("Asked in other words", "should say"),
    "neighbour": ("Neighbours", "should stay"),
}
_ROWS = 8  # ways of editing beside each other


@frozen(kw_only=True)
class _Asked:
    """One prompt that was put to a model; several cells may have answered it."""

    model: str
    request: str
    kind: str
    prompt: str


def examples(run: RunRecord, most: int, text: int) -> Html | None:
    """Return examples before and after, by kind; None where the run has none.

    Args:
        run: whose cells keep examples.
        most: of each kind.
        text: characters of a prompt or answer.
    """
    found: dict[_Asked, list[tuple[CellRecord, Example]]] = defaultdict(list)
    for cell in run.cells:
        for one in cell.examples:
            asked = _Asked(model=cell.model, request=one.request, kind=one.kind, prompt=one.prompt)
            found[asked].append((cell, one))
    if not found:
        return None
    return joined(_kind(kind, found, most, text) for kind in _KINDS)


def _kind(
    kind: str, found: dict[_Asked, list[tuple[CellRecord, Example]]], most: int, text: int
) -> Html:
    own = [(asked, said) for asked, said in found.items() if asked.kind == kind]
    if not own:
        return joined([])
    rest = len(own) - most
    models = len({asked.model for asked in found})
    return joined(
        [
            element("h3", _KINDS[kind][0]),
            element(
                "div",
                *(_example(asked, said, text, models > 1) for asked, said in own[:most]),
                class_="examples",
            ),
            element("p", more(rest, "example"), class_="note") if rest > 0 else "",
        ]
    )


def _example(
    asked: _Asked, said: Sequence[tuple[CellRecord, Example]], text: int, name_model: bool
) -> Html:
    first = said[0][1]
    about = f"{_KINDS[asked.kind][1]} "
    wanted = element("span", about, element("b", foreign(first.wanted, text)), class_="wanted")
    model = [element("span", foreign(asked.model, 60), class_="code")] if name_model else []
    return element(
        "table",
        element("caption", element("q", foreign(asked.prompt, text)), wanted, *model),
        element("tbody", *_rows(said, text)),
    )


def _rows(said: Sequence[tuple[CellRecord, Example]], text: int) -> Iterator[Html]:
    wanted = said[0][1].wanted
    yield _row("unedited", said[0][1].before, wanted, text)
    labels = [cell.label for cell, _ in said]
    for cell, one in said[:_ROWS]:
        yield _row(
            cell.label if labels.count(cell.label) == 1 else cell.name, one.after, wanted, text
        )
    if len(said) > _ROWS:
        yield element("tr", element("td", more(len(said) - _ROWS, "answer"), colspan=2))


def _row(who: str, answer: str, wanted: str, text: int) -> Html:
    right = answer.strip().startswith(wanted.strip())
    mark = element("span", "✓" if right else "✗", aria_hidden="true", class_="tick-mark")
    heard = element("span", "as wanted: " if right else "not as wanted: ", class_="unseen")
    shown = foreign(answer, text) if answer.strip() else element("i", "nothing")
    return element(
        "tr",
        element("th", cut(who, 60), scope="row"),
        element("td", mark, heard, shown, class_="right" if right else "wrong"),
    )
