"""Checks of the model of a run: that it is the one that was edited, and with the edits what they left."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from kedit_core.deltas import Delta
from kedit_core.digests import digest
from kedit_core.editor import Editor
from kedit_core.errors import KeditError, UnknownCellError
from kedit_core.journal import Journal
from kedit_core.opening import editor_of
from kedit_core.plans import plan_from
from kedit_core.plugins import Plugins
from kedit_core.progress import Progress
from kedit_core.run_checks import Check, counted
from kedit_core.run_files import stored_delta
from kedit_core.run_originals import originals_of
from kedit_core.run_reading import is_memory, rows_in_force


def check_models(
    journal: Journal,
    cells: Sequence[str],
    source: str | None,
    plugins: Plugins,
    progress: Progress | None,
) -> Iterator[Check]:
    """Yield for each model of some cells whether it is as it was, and for each cell what its edits make of it.

    Args:
        journal: of the run.
        cells: their names.
        source: where the model is now; None for where the plan has it.
        plugins: that open models and apply deltas.
        progress: None is silent.

    Raises:
        UnknownCellError: a source was given, and the cells have several models.
    """
    models: dict[str, list[str]] = defaultdict(list)
    for row in journal.rows("SELECT name, model FROM cells ORDER BY place"):
        if row["name"] in cells:
            models[row["model"]].append(row["name"])
    if source is not None and len(models) > 1:
        raise UnknownCellError(str(journal.folder.path), None, cells)
    plan = plan_from(journal.setting("plan"))
    for model, own in models.items():
        where = source if source is not None else model
        try:
            editor = editor_of(plan, where, plugins=plugins, progress=progress)
        except KeditError as error:
            yield Check(what="model", about=model, found="", problems=[str(error)])
            continue
        try:
            yield _unedited(journal, editor, model, where)
            for cell in own:
                yield _edited(journal, editor, cell)
                editor.go_to(())
        finally:
            editor.close()


def _unedited(journal: Journal, editor: Editor, model: str, where: str) -> Check:
    """See that the weights that were edited are in the model what they were before."""
    rows = originals_of(journal, model)
    problems = []
    for row in rows:
        try:
            same = digest(editor.weights.base_of(row["weight"])) == row["digest"]
        except KeditError as error:
            problems.append(str(error))
            continue
        if not same:
            problems.append(f"{row['weight']} is not what the run began with")
    opened = "opened" if where == model else f"opened from {where}"
    found = f"{opened}, {counted(len(rows), 'edited weight')} as the originals"
    return Check(what="model", about=model, found=found, problems=problems)


def _edited(journal: Journal, editor: Editor, cell: str) -> Check:
    """See that the edits in force fit the model, and leave in it what they left in the run."""
    rows = rows_in_force(journal, cell)
    needed = rows[-1:] if is_memory(rows) else rows
    try:
        deltas = [stored_delta(journal, row) for row in needed]
        editor.go_to(deltas)
    except KeditError as error:
        return Check(what="edits", about=cell, found="", problems=[str(error)])
    if is_memory(rows):
        found = f"a memory of {counted(len(deltas[-1].requests), 'edit')} is in"
        return Check(what="edits", about=cell, found=found)
    expected = _left(journal, cell, deltas)
    known = {name: wanted for name, wanted in expected.items() if wanted}
    now: dict[str, str] = {}
    for delta in deltas:
        now.update(editor.weights.written_digests(delta))
    differing = [name for name, wanted in known.items() if now[name] != wanted]
    found = f"{counted(len(deltas), 'delta')} in, {counted(len(known) - len(differing), 'weight')} as rows say"
    if len(known) < len(expected):
        found += (
            f", {len(expected) - len(known)} of which no row tells, as edits below were taken out"
        )
    made = _elsewhere(deltas[-1], editor) if differing else ""
    if made:
        # Rounding of a product depends on device, libraries and threads.
        found += f", {len(differing)} in other bits than where they were made ({made})"
        differing = []
    problems = [f"{name} is not what the edits left in it" for name in differing]
    return Check(what="edits", about=cell, found=found, problems=problems)


def _left(journal: Journal, cell: str, deltas: Sequence[Delta]) -> Mapping[str, str]:
    """Return per weight the digest that deltas leave in it, empty where they were never in like this."""
    rows = journal.rows("SELECT delta, after FROM edits WHERE cell = ?", cell)
    touched: dict[str, Any] = {row["delta"]: json.loads(row["after"]) for row in rows}
    below: dict[str, list[str]] = defaultdict(list)
    left: dict[str, str] = {}
    for delta in deltas:
        for name, found in touched[delta.id].items():
            then = [one for one in delta.provenance.after if name in touched.get(one, ())]
            left[name] = found if then == below[name] else ""
            below[name].append(delta.id)
    return left


def _elsewhere(delta: Delta, editor: Editor) -> str:
    """Return where a delta was made, if its bits bind only there and not here."""
    made, here = delta.provenance, next(editor.model.parameters()).device.type
    library = made.versions.get("torch", "")
    same = made.device == here and library == torch.__version__
    return "" if same else f"{made.device}, torch {library}"
