"""Restoring an edited checkpoint from the originals that a run keeps, even if their source is gone."""

from collections.abc import Iterator, Sequence
from json import loads
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.digests import digest
from kedit_core.errors import JournalError, ModelError
from kedit_core.export import check_out, write_checkpoint
from kedit_core.journal import Journal, undisturbed
from kedit_core.plugins import Plugins
from kedit_core.run_files import stored_original
from kedit_core.run_reading import cell_named


def _many(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names)


@frozen(kw_only=True)
class Restored:
    """A checkpoint with the originals of a run.

    Attributes:
        path: the folder.
        model: that was edited, as the plan names it.
        weights: paths of the parameters that were put back.
        cast: those that the checkpoint keeps in another dtype than the edited model did: they hold the
            original cast to it, all others its bits.
        foreign: those that held neither the original nor what an edit of the run left there.
    """

    path: Path
    model: str
    weights: tuple[str, ...] = field(converter=_many)
    cast: tuple[str, ...] = field(converter=_many)
    foreign: tuple[str, ...] = field(converter=_many)


def restore(
    folder: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    cell: str | None = None,
    plugins: Plugins | None = None,
) -> Restored:
    """Write a checkpoint that is an edited one with the run's originals in the place of what was edited.

    Only the run and the edited checkpoint are read. A restoration that fails leaves nothing.

    Args:
        folder: of the run.
        checkpoint: an export of its edits, or what ``open_model`` makes of a name.
        out: a folder that does not exist yet, or is empty.
        cell: one that edited this model; None where the run has one model.
        plugins: by default all installed ones.

    Raises:
        JournalError: the run changed no weights, or an original is missing or damaged.
        UnknownCellError: there is no such cell, or there are several models and no cell was named.
        ModelError: the checkpoint cannot be opened, or is of another model.
        ExportError: ``out`` is taken or cannot be written.
        RunBusyError: another process is at work on the run.
    """
    check_out(out)
    plugins = plugins if plugins is not None else Plugins.installed()
    with undisturbed(folder) as journal:
        edited = model_of(journal, cell)
        rows = originals_of(journal, edited)
        if not rows:
            raise JournalError(
                str(folder), f"changed no weights of {edited}, so every copy of it is the original"
            )
        model, tokenizer = plugins.call_all(
            "open_model", source=str(checkpoint), dtype=None, device=None
        )
        found = dict(_put_back(journal, model, str(checkpoint), rows))
        left = _left_by_edits(journal, edited)
    write_checkpoint(model, tokenizer, out)
    return Restored(
        path=Path(out),
        model=edited,
        weights=list(found),
        cast=[name for name, (_, exact) in found.items() if not exact],
        foreign=[
            name for name, (before, exact) in found.items() if exact and (name, before) not in left
        ],
    )


def model_of(journal: Journal, cell: str | None) -> str:
    """Return the model that a cell edits; the only one of a run for None.

    Raises:
        UnknownCellError: there is no such cell, or there are several models and no cell was named.
    """
    models = [row["model"] for row in journal.rows("SELECT DISTINCT model FROM cells")]
    if cell is None and len(models) == 1:
        return str(models[0])
    (row,) = journal.rows("SELECT model FROM cells WHERE name = ?", cell_named(journal, cell))
    return str(row["model"])


def originals_of(journal: Journal, model: str) -> list[Any]:
    """Return the rows of the originals of a model's weights."""
    return journal.rows("SELECT * FROM originals WHERE model = ? ORDER BY weight", model)


def _left_by_edits(journal: Journal, model: str) -> set[tuple[str, str]]:
    """Return each weight of a model with each digest that it had during the run."""
    rows = journal.rows(
        "SELECT edits.before, edits.after FROM edits JOIN cells ON edits.cell = cells.name "
        "WHERE model = ?",
        model,
    )
    return {
        pair
        for row in rows
        for pair in (*loads(row["before"]).items(), *loads(row["after"]).items())
    }


def _put_back(
    journal: Journal, model: nn.Module, where: str, rows: Sequence[Any]
) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Copy originals into a model; yield of each the digest of what it held, and if it holds the bits now."""
    for row in rows:
        original = stored_original(journal, row)
        parameter = _parameter(model, where, row["weight"], original)
        before = digest(parameter)
        with torch.no_grad():
            parameter.copy_(original)
        if digest(parameter) != digest(original.to(parameter.dtype)):
            raise ModelError(where, f"{row['weight']} did not take its original")
        yield row["weight"], (before, parameter.dtype == original.dtype)


def _parameter(model: nn.Module, where: str, weight: str, original: Tensor) -> nn.Parameter:
    try:
        parameter = model.get_parameter(weight)
    except AttributeError:
        raise ModelError(
            where, f"has no {weight}, which the run edited: it is another model"
        ) from None
    if parameter.shape != original.shape:
        raise ModelError(
            where,
            f"its {weight} has shape {tuple(parameter.shape)}, the one that the run edited "
            f"{tuple(original.shape)}: it is another model",
        )
    return parameter
