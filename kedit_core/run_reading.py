"""Reading what a run has done from its journal, while it goes on too."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kedit_core.config import load_config
from kedit_core.errors import JournalError, NotInForceError, UnknownCellError
from kedit_core.journal import Journal, reading
from kedit_core.packing import judgement_of, unpacked_decisions, unpacked_report
from kedit_core.request_files import request_from
from kedit_core.run_folder import RunFolder
from kedit_core.run_records import CellRecord, EditRecord, Example, RunRecord
from kedit_core.schedule import Schedule

if TYPE_CHECKING:
    from kedit_core.deltas import Delta


def read_run(folder: str | Path) -> RunRecord:
    """Return what a run has done so far.

    Args:
        folder: of the run.

    Raises:
        JournalError: there is no run, or its journal cannot be read.
    """
    with reading(folder) as journal, journal.at_once():
        settings = {
            name: journal.setting(name) for name in ("plan", "versions", "machine", "started")
        }
        cells = journal.rows("SELECT * FROM cells ORDER BY place")
        edits = journal.rows("SELECT * FROM edits ORDER BY place")
        judgements = journal.rows("SELECT * FROM judgements ORDER BY id")
    found = [
        _cell(
            folder,
            row,
            [one for one in edits if one["cell"] == row["name"]],
            [one for one in judgements if one["cell"] == row["name"]],
        )
        for row in cells
    ]
    return RunRecord(folder=Path(folder), cells=found, **settings)


def deltas_of(folder: str | Path, cell: str | None = None) -> "tuple[Delta, ...]":
    """Return the deltas in force of a cell, oldest first; of a memory the newest, which holds all of it.

    ``Editor.go_to`` brings a model to them.

    Args:
        folder: of the run.
        cell: its name; None where the run has one.

    Raises:
        JournalError: there is no run, or a file of it is missing or damaged.
        UnknownCellError: there is no such cell, or there are several and none was named.
    """
    # Not earlier: it loads torch, and what a run has done can be read without.
    from kedit_core.run_files import stored_delta

    with reading(folder) as journal:
        cell = cell_named(journal, cell)
        rows = rows_in_force(journal, cell)
        while True:
            try:
                needed = rows[-1:] if is_memory(rows) else rows
                return tuple(stored_delta(journal, row) for row in needed)
            except JournalError:
                # Whoever goes on with the run drops the file of a memory once a newer one is there.
                before, rows = rows, rows_in_force(journal, cell)
                if [tuple(row) for row in before] == [tuple(row) for row in rows]:
                    raise


def deltas_at(path: str | Path) -> "tuple[Delta, ...]":
    """Return the deltas of a file, or those in force of a run: ``RUN``, or ``RUN/CELL`` where it has several.

    Raises:
        DeltaError: the file is missing, damaged, or not what its ids say.
        JournalError: there is no run, or a file of it is missing or damaged.
        UnknownCellError: the run has no such cell, or several and none was named.
        NotInForceError: no edit of the run is in force.
    """
    from kedit_core.delta_files import load_deltas

    path = Path(path)
    run = None if path.is_file() else _run_above(path)
    if run is None and path.is_dir():
        raise JournalError(str(path), "holds no run, and is no delta file")
    if run is None:
        return load_deltas(path)
    found = deltas_of(run, _cell_below(run, path.relative_to(run)))
    if not found:
        raise NotInForceError(f"{path}: there is nothing to put in", ())
    return found


def cell_named(journal: Journal, name: str | None) -> str:
    """Return the name of a cell, the only one's for None.

    Raises:
        UnknownCellError: there is no such cell, or there are several and none was named.
    """
    known = [row["name"] for row in journal.rows("SELECT name FROM cells ORDER BY place")]
    if name is None and len(known) == 1:
        return str(known[0])
    if name is None or name not in known:
        raise UnknownCellError(str(journal.folder.path), name, known)
    return name


def rows_in_force(journal: Journal, cell: str) -> list[Any]:
    """Return the rows of the table ``edits`` of a cell that are in force, oldest first."""
    return journal.rows(
        "SELECT * FROM edits WHERE cell = ? AND in_force ORDER BY place",
        cell,
    )


def is_memory(rows: Sequence[Any]) -> bool:
    """Tell whether the deltas of rows each hold all that the earlier ones hold.

    Those write no weights, so they left no digests; and only their files are dropped.
    """
    return any(row["after"] == "{}" or not row["path"] for row in rows)


def _run_above(path: Path) -> Path | None:
    """Return the folder of the run that a path names or goes below."""
    return next((one for one in (path, *path.parents) if RunFolder(one).exists()), None)


def _cell_below(run: Path, rest: PurePath) -> str | None:
    """Return the cell that the rest of a path names: names may hold slashes, which a path makes its own."""
    if not rest.parts:
        return None
    with reading(run) as journal:
        names = [row["name"] for row in journal.rows("SELECT name FROM cells")]
    return next((name for name in names if _parts(name) == rest.parts), str(rest))


def _parts(name: str) -> tuple[str, ...]:
    return PurePath(f"./{name}").parts


def _cell(folder: str | Path, row: Any, edits: Sequence[Any], judged: Sequence[Any]) -> CellRecord:
    try:
        return _cell_of(row, edits, judged)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(
            str(folder), f"the rows of {row['name']} cannot be read ({error})"
        ) from None


def _cell_of(row: Any, edits: Sequence[Any], judged: Sequence[Any]) -> CellRecord:
    requests: list[str] = json.loads(row["requests"] or "[]")
    return CellRecord(
        name=row["name"],
        model=row["model"],
        method=row["method"],
        label=row["label"],
        config=json.loads(row["config"]),
        schedule=load_config(Schedule, json.loads(row["schedule"]), where="schedule"),
        seed=row["seed"],
        requests=len(requests),
        before=None if row["before"] is None else unpacked_report(row["before"], requests),
        edits=[edit_of(one) for one in edits],
        judgements=[judgement_of(one, requests) for one in judged],
        decisions=unpacked_decisions(row["decisions"]),
        examples=[Example(**one) for one in json.loads(row["examples"] or "[]")],
        stopped=row["stopped"] or "",
        finished=bool(row["finished"]),
    )


def edit_of(row: Any) -> EditRecord:
    """Return the record of a row of the table ``edits``."""
    return EditRecord(
        place=row["place"],
        delta=row["delta"],
        parent=row["parent"],
        method=row["method"],
        version=row["version"],
        requests=[request_from(one) for one in json.loads(row["requests"])],
        before=json.loads(row["before"]),
        after=json.loads(row["after"]),
        path=row["path"],
        checksum=row["checksum"],
        seconds=row["seconds"],
        peak_memory=row["peak_memory"],
        in_force=bool(row["in_force"]),
    )
