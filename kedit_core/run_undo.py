"""Taking edits out of a run: of what its rows say is in force. No model is touched.

A delta of kind *weights* is taken out by itself. Of a memory each delta holds the whole, so only the
newest can be, and the one before it must be there then: if its file was dropped, it is made again.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from json import loads
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.config import load_config
from kedit_core.delta_files import save_deltas
from kedit_core.deltas import Delta
from kedit_core.errors import JournalError, NotInForceError, UnknownCellError
from kedit_core.journal import Journal, open_journal
from kedit_core.opening import editor_of
from kedit_core.plans import plan_from
from kedit_core.plugins import Plugins
from kedit_core.progress import Progress
from kedit_core.request_files import request_from
from kedit_core.run_files import put, stored_delta
from kedit_core.run_folder import StoredFile
from kedit_core.run_reading import cell_named, is_memory, rows_in_force


@frozen(kw_only=True)
class Undone:
    """What was taken out of a cell of a run.

    Attributes:
        cell: its name.
        deltas: ids of those taken out, oldest first.
        left: how many batches are in force still.
        made_again: how many deltas of a memory were made again to have the one before.
    """

    cell: str
    deltas: tuple[str, ...]
    left: int
    made_again: int = 0


def undo(
    folder: str | Path,
    id: str | None = None,  # noqa: A002
    *,
    cell: str | None = None,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> Undone:
    """Take one edit out of a run; all of it is noted at once, or nothing.

    Args:
        folder: of the run.
        id: of a delta; None takes the newest out.
        cell: its name; None where the run has one, or where one holds the delta.
        plugins: for a memory that must be made again; by default all installed ones.
        progress: by default silent.

    Raises:
        NotInForceError: there is no such delta (a LookupError).
        UnknownCellError: there is no such cell, or there are several.
        JournalError: the delta is no longer the newest of a memory, or a file of the run is missing, damaged or
            cannot be made again.
        RunBusyError: another process is at work there.
    """
    with closing(open_journal(folder)) as journal:
        cell = _cell_of(journal, id, cell)
        rows = rows_in_force(journal, cell)
        place = _place_of(journal, rows, id, cell)
        taken = ("UPDATE edits SET in_force = 0 WHERE id = ?", (rows[place]["id"],))
        statements: list[tuple[str, tuple[Any, ...]]] = [taken]
        made_again = 0
        if is_memory(rows):
            if place != len(rows) - 1:
                raise JournalError(
                    str(folder), _superseded(rows[place]["delta"], rows[-1]["delta"])
                )
            stored, made_again = _available(journal, cell, rows[:-1], plugins, progress)
            if stored is not None:
                values = (stored.path, stored.checksum, rows[-2]["id"])
                statements.append(("UPDATE edits SET path = ?, checksum = ? WHERE id = ?", values))
        journal.write(*statements)
        return Undone(
            cell=cell,
            deltas=(rows[place]["delta"],),
            left=len(rows) - 1,
            made_again=made_again,
        )


def undo_all(folder: str | Path, cell: str | None = None) -> tuple[Undone, ...]:
    """Take all edits of a run out; all of it is noted at once, or nothing.

    Args:
        folder: of the run.
        cell: only of this one; None for all.

    Raises:
        UnknownCellError: there is no such cell.
        RunBusyError: another process is at work there.
    """
    with closing(open_journal(folder)) as journal:
        names = [row["name"] for row in journal.rows("SELECT name FROM cells ORDER BY place")]
        cells = names if cell is None else [cell_named(journal, cell)]
        held = {name: rows_in_force(journal, name) for name in cells}
        query = "UPDATE edits SET in_force = 0 WHERE cell = ?"
        journal.write(*((query, (name,)) for name in cells))
    return tuple(
        Undone(cell=name, deltas=tuple(row["delta"] for row in rows), left=0)
        for name, rows in held.items()
    )


def _cell_of(journal: Journal, id: str | None, cell: str | None) -> str:  # noqa: A002
    """Return the cell that is meant: the one that holds a delta where none is named."""
    if id is None or cell is not None:
        return cell_named(journal, cell)
    query = "SELECT DISTINCT cell FROM edits WHERE delta = ? AND in_force ORDER BY cell"
    holding = [row["cell"] for row in journal.rows(query, id)]
    if len(holding) > 1:
        raise UnknownCellError(str(journal.folder.path), None, holding)
    if not holding:
        held = journal.rows("SELECT delta FROM edits WHERE in_force ORDER BY id DESC")
        raise _not_in_force(journal, id, "", held)
    return str(holding[0])


def _place_of(journal: Journal, rows: Sequence[Any], id: str | None, cell: str) -> int:  # noqa: A002
    """Return where among the rows in force a delta is."""
    known = [row["delta"] for row in rows]
    if id is not None and id not in known:
        raise _not_in_force(journal, id, f" of {cell}", rows)
    if not rows:
        raise NotInForceError(f"{journal.folder.path}: {cell} has no edit to undo", ())
    return len(rows) - 1 if id is None else known.index(id)


def _not_in_force(
    journal: Journal,
    id: str,  # noqa: A002
    where: str,
    rows: Sequence[Any],
) -> NotInForceError:
    made = journal.rows("SELECT 1 FROM edits WHERE delta = ?", id)
    what = f"delta {id!r}{where} is out already" if made else f"no delta {id!r}{where} to undo"
    return NotInForceError(f"{journal.folder.path}: {what}", [row["delta"] for row in rows])


def _superseded(delta: str, newest: str) -> str:
    return (
        f"delta {delta} is an earlier state of a memory, and all later ones hold its edits; undo the newest "
        f"({newest}) first, or Editor.load the run and Editor.remove the requests"
    )


def _available(
    journal: Journal,
    cell: str,
    rows: Sequence[Any],
    plugins: Plugins | None,
    progress: Progress | None,
) -> tuple[StoredFile | None, int]:
    """See that the newest delta of a memory is stored; made again, it comes with how many were made for it."""
    if not rows:
        return None, 0
    if _is_there(journal, rows[-1]):
        journal.folder.checked(StoredFile(path=rows[-1]["path"], checksum=rows[-1]["checksum"]))
        return None, 0
    last = next((n for n in reversed(range(len(rows))) if _is_there(journal, rows[n])), -1)
    start = [stored_delta(journal, rows[last])] if last >= 0 else []
    delta = _made_again(journal, cell, start, rows[last + 1 :], plugins, progress)
    return put(journal, partial(save_deltas, [delta])), len(rows) - last - 1


def _is_there(journal: Journal, row: Any) -> bool:
    return bool(row["path"]) and (journal.folder.path / row["path"]).is_file()


def _made_again(
    journal: Journal,
    cell: str,
    start: Sequence[Delta],
    rows: Sequence[Any],
    plugins: Plugins | None,
    progress: Progress | None,
) -> Delta:
    """Return the last delta of rows that are made again on top of ``start``, each with the id that it had."""
    (found,) = journal.rows("SELECT model FROM cells WHERE name = ?", cell)
    plugins = plugins if plugins is not None else Plugins.installed()
    plan = plan_from(journal.setting("plan"))
    editor = editor_of(plan, found["model"], plugins=plugins, progress=progress)
    try:
        editor.go_to(start)
        with editor.progress.task("making again", len(rows), "batches") as advance:
            for row in rows:
                config = load_config(editor.info(row["method"]).config, loads(row["config"]))
                asked = [request_from(one) for one in loads(row["requests"])]
                made = editor.edit(asked, row["method"], config)
                if made.id != row["delta"]:
                    raise JournalError(
                        str(journal.folder.path),
                        f"batch {row['place']} of {cell} was dropped and comes out otherwise when it is made "
                        f"again ({made.id}, was {row['delta']}): the model, the method or the machine is not "
                        "what it was; nothing was changed",
                    )
                advance(1)
    finally:
        editor.close()
    return made
