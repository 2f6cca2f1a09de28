"""Verifying a run: that its journal, its files and the model that they make belong together."""

from collections.abc import Iterator
from pathlib import Path

from kedit_core.journal import undisturbed
from kedit_core.model_checks import check_models
from kedit_core.plugins import Plugins
from kedit_core.progress import Progress
from kedit_core.run_checks import Check, check_cell, check_database, check_originals
from kedit_core.run_reading import cell_named


def verify(
    folder: str | Path,
    *,
    cell: str | None = None,
    model: str | None = None,
    plugins: Plugins | None = None,
    progress: Progress | None = None,
) -> Iterator[Check]:
    """Yield every check of a run as it is made; where the database is damaged no other follows.

    Args:
        folder: of the run.
        cell: look at this one alone; None for all.
        model: where the model is now; None for where the plan has it.
        plugins: by default all installed ones.
        progress: by default silent.

    Raises:
        JournalError: there is no run.
        UnknownCellError: there is no such cell.
        RunBusyError: another process is at work there.
    """
    plugins = plugins if plugins is not None else Plugins.installed()
    with undisturbed(folder) as journal:
        if cell is not None:
            cell_named(journal, cell)
        database = check_database(journal)
        yield database
        if not database.passed:
            return
        names = [row["name"] for row in journal.rows("SELECT name FROM cells ORDER BY place")]
        cells = names if cell is None else [cell]
        for name in cells:
            yield from check_cell(journal, name)
        yield check_originals(journal)
        yield from check_models(journal, cells, model, plugins, progress)
