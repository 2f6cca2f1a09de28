"""``kedit log``: what a run has done, while it goes on too."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kedit_core.cli.opening import Json
from kedit_core.cli.screen import counted, print_json, screen
from kedit_core.errors import UnknownCellError

if TYPE_CHECKING:
    from kedit_core.run_records import CellRecord, EditRecord, RunRecord


def run(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    cell: Annotated[
        str | None, typer.Option("--cell", help="List the edits of this cell instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a run has done: its cells, or the edits of one."""
    from kedit_core.run_folder import RunFolder
    from kedit_core.run_reading import read_run

    found = read_run(run)
    owner = RunFolder(run).owner()
    if cell is None:
        if as_json:
            print_json(_document(found, owner))
        else:
            _show_cells(found, owner)
        return
    known = {one.name: one for one in found.cells}
    if cell not in known:
        raise UnknownCellError(str(run), cell, known)
    if as_json:
        print_json({**_cell(known[cell]), "edits": [_edit(one) for one in known[cell].edits]})
    else:
        _show_edits(known[cell])


_NAMING = ("model", "method", "schedule", "seed")


def _state(cell: "CellRecord") -> str:
    if cell.stopped:
        return f"stopped: {cell.stopped}"
    if cell.finished:
        return "finished"
    return "going on" if cell.requests else "to come"


def _scores(cell: "CellRecord") -> dict[str, float]:
    """Return the means of the last judgement."""
    return cell.judgements[-1].report.means() if cell.judgements else {}


def _cell(cell: "CellRecord") -> dict[str, Any]:
    from kedit_core.plans import described

    return {
        "cell": cell.name,
        "model": cell.model,
        "method": cell.method,
        "label": cell.label,
        "schedule": described(cell.schedule),
        "seed": cell.seed,
        "requests": cell.requests,
        "made": sum(len(edit.requests) for edit in cell.edits),
        "in_force": sum(len(edit.requests) for edit in cell.edits if edit.in_force),
        "judged_at": cell.judgements[-1].at if cell.judgements else None,
        "scores": _scores(cell),
        "state": "stopped" if cell.stopped else _state(cell),
        "stopped": cell.stopped or None,
    }


def _edit(edit: "EditRecord") -> dict[str, Any]:
    return {
        "place": edit.place,
        "delta": edit.delta,
        "parent": edit.parent,
        "requests": [
            {"id": one.id, "prompt": one.prompt, "target_new": one.target_new}
            for one in edit.requests
        ],
        "path": edit.path or None,
        "seconds": edit.seconds,
        "peak_memory": edit.peak_memory,
        "in_force": edit.in_force,
    }


def _document(found: "RunRecord", owner: tuple[int, str] | None) -> dict[str, Any]:
    return {
        "run": str(found.folder),
        "started": found.started,
        "at_work": None if owner is None else {"pid": owner[0], "since": owner[1]},
        "versions": dict(found.versions),
        "machine": dict(found.machine),
        "cells": [_cell(one) for one in found.cells],
    }


def _show_cells(found: "RunRecord", owner: tuple[int, str] | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kedit_core.cli.scores import HEADINGS, shown

    judged = [name for name in HEADINGS if any(name in _scores(cell) for cell in found.cells)]
    rows = [_cell(cell) for cell in found.cells]
    differ = [name for name in _NAMING if len({str(row[name]) for row in rows}) > 1]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("CELL", *(name.upper() for name in differ)):
        table.add_column(heading, overflow="fold")
    for heading in ("MADE", "IN FORCE", *(HEADINGS[name] for name in judged)):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row["cell"]),
            *("-" if row[name] is None else escape(str(row[name])) for name in differ),
            f"{row['made']}/{row['requests']}" if row["requests"] else "0",
            str(row["in_force"]),
            *(shown(name, row["scores"].get(name)) for name in judged),
            row["state"],
        )
    console = screen()
    if "model" not in differ:
        model = found.cells[0].model
        console.print(f"{model}, begun {found.started}\n", markup=False, soft_wrap=True)
    console.print(table)
    for cell in found.cells:
        if cell.stopped:
            console.print(f"\n{cell.name} stopped: {cell.stopped}", markup=False)
    if owner is not None:
        console.print(f"\nprocess {owner[0]} works on it since {owner[1]}", markup=False)
    elif any(not cell.finished for cell in found.cells):
        console.print("\nnobody works on it; kedit run PLAN --resume goes on", markup=False)


def _show_edits(cell: "CellRecord") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PLACE", "DELTA", "EDIT", "SECONDS", "IN FORCE"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "DELTA")
    for edit in cell.edits:
        first = edit.requests[0]
        more = f" +{len(edit.requests) - 1}" if len(edit.requests) > 1 else ""
        table.add_row(
            str(edit.place),
            edit.delta,
            f"{escape(first.prompt)} [dim]→[/dim] {escape(first.target_new)}{more}",
            f"{edit.seconds:.1f}",
            "yes" if edit.in_force else "no",
        )
    console = screen()
    console.print(table)
    console.print(f"\n{counted(len(cell.edits), 'delta')}, {_state(cell)}", markup=False)
