"""What ROME does on every family that the tests know, as the table of ``docs/reference/families.md``.

``python tests/benchmarks/families.py`` makes each family tiny and random, traces it, edits one fact, exports
the edit, takes it out, and prints a row: what was measured of the family, the target's NLL before and after,
whether undo and both exports are exact; or the sentence with which it is refused. Exits 1 when an edit
was not undone to the last bit.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import typer
from transformers import logging

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.families import FAMILIES, OTHERS, Outcome, outcome_of

HEADINGS = (
    *("family", "additive", "parallel", "tuple", "Conv1D", "tied"),
    *("NLL", "searched, written", "undone", "merged", "PEFT"),
)


def row(found: Outcome) -> str:
    """Return the row of one family."""
    cells = [f"`{found.name}`"]
    layout = found.layout
    if layout is None:
        cells += ["–"] * 5
    else:
        measured = (layout.additive, layout.parallel, layout.layer_returns_tuple, layout.conv1d)
        cells += ["–" if flag is None else _said(flag) for flag in (*measured, layout.tied)]
    if found.refusal is None:
        cells.append(f"{found.before:.2f} → {found.after:.2f}")
        cells.append(f"{found.searched:.4f}, {found.written:.4f}")
        cells += [_said(flag) for flag in (found.undone, found.merged, found.adapted)]
    else:
        cells += [f"refused: {found.refusal}", *(["–"] * 4)]
    return f"| {' | '.join(cells)} |"


def _said(flag: bool | None) -> str:
    return "refused" if flag is None else "yes" if flag else "no"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    found = []
    for name in (*FAMILIES, *OTHERS):
        with TemporaryDirectory() as folder:
            found.append(outcome_of(name, Path(folder)))
    typer.echo(f"| {' | '.join(HEADINGS)} |")
    typer.echo("|" + " --- |" * len(HEADINGS))
    for one in found:
        typer.echo(row(one))
    raise typer.Exit(not all(one.undone for one in found))


if __name__ == "__main__":
    typer.run(main)
