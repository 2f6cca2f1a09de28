"""Exports: edits as what other programs load, a whole checkpoint or an adapter beside the original one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from attrs import field, frozen
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.adapters import Parts, check_modules, pair_of, rank_for, save_adapter
from kedit_core.deltas import Dense, LowRank, SideMemory
from kedit_core.editor import Editor
from kedit_core.errors import ExportError, KeditError, ModelError
from kedit_core.folders import check_free, whole_folder
from kedit_core.untouched import same_settings
from kedit_core.weights import Weights


@frozen(kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
        kind: ``merged`` or ``lora``.
        path: the folder.
        size: bytes of its files.
        deltas: ids of the edits in it, oldest first.
        rank: of an adapter.
        truncation: per module of an adapter the relative error (Frobenius) of its truncated update, 0
            of a whole one.
        differing: per module of an adapter in how many elements PEFT's merge differs from the edited
            weight, measured here; all 0 means bit for bit.
    """

    kind: Literal["merged", "lora"]
    path: Path
    size: int
    deltas: tuple[str, ...]
    rank: int | None = None
    truncation: Mapping[str, float] = field(factory=dict)
    differing: Mapping[str, int] = field(factory=dict)

    @property
    def exact(self) -> bool:
        """Return whether the folder holds the edited model bit for bit, an adapter once it is merged."""
        return not any(self.differing.values())

    @property
    def worst_truncation(self) -> float:
        """Return the largest error of ``truncation``, 0 when every update is whole."""
        return max(self.truncation.values(), default=0.0)


def export_merged(editor: Editor, out: str | Path, *, shard_size: int | str = "5GB") -> Exported:
    """Write the edited model and its tokenizer as a checkpoint that plain transformers loads.

    It holds the same bits in the same dtype. An export that fails or is interrupted leaves nothing.

    Args:
        editor: with the edits in force.
        out: a folder that does not exist yet, or is empty.
        shard_size: bytes, or text such as ``"5GB"``; a larger model is split into several files.

    Raises:
        ExportError: an edit is no change of weights, none is in force, or ``out`` cannot be written.
        ModelError: the model carries an adapter.
    """
    _updates(editor)
    write_checkpoint(editor.model, editor.tokenizer, out, shard_size=shard_size)
    return Exported(kind="merged", path=Path(out), size=_size(Path(out)), deltas=_ids(editor))


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    *,
    shard_size: int | str = "5GB",
) -> None:
    """Write a model as it is, and its tokenizer; one that fails or is interrupted leaves nothing.

    Raises:
        ExportError: ``out`` is taken or cannot be written.
    """
    with _written(Path(out)) as folder, same_settings(model):
        model.save_pretrained(folder, max_shard_size=shard_size)
        tokenizer.save_pretrained(folder)


def export_lora(editor: Editor, out: str | Path, rank: int | None = None) -> Exported:
    """Write the edits as a PEFT adapter of one rank for all modules, for the unedited model.

    Merged by PEFT in float32 it is the edited model bit for bit, which is measured and returned.
    Factors become one pair per module; only with ``rank`` are updates truncated that do not fit.

    Args:
        editor: with the edits in force.
        out: a folder that does not exist yet, or is empty.
        rank: one of ``EXPORT_RANKS``; None takes the smallest that holds all factors.

    Raises:
        ExportError: an edit is no change of linear weights, none is in force, the updates fit no rank,
            or ``out`` cannot be written.
        ModelError: the model carries an adapter already.
    """
    updates = _updates(editor)
    check_modules(editor.model, updates)
    rank = rank_for(updates, rank)
    with _written(Path(out)) as folder, torch.no_grad():
        pairs = [
            pair_of(editor.model, editor.weights, path, parts, rank)
            for path, parts in updates.items()
        ]
        save_adapter(pairs, editor.model, folder)
    return Exported(
        kind="lora",
        path=Path(out),
        size=_size(Path(out)),
        deltas=_ids(editor),
        rank=rank,
        truncation={pair.module: pair.error for pair in pairs},
        differing={pair.module: pair.differing for pair in pairs},
    )


def check_out(out: str | Path) -> None:
    """See that an export could be written there, before a model is opened for it.

    Raises:
        ExportError: something is there already.
    """
    try:
        check_free(Path(out))
    except OSError as error:
        raise _refusal(Path(out), error) from None


def _updates(editor: Editor) -> dict[str, Parts]:
    """Return what is in force on each weight, oldest first, once it is sure that this is all there is."""
    name = type(editor.model).__name__
    if any(_is_adapter(module) for module in editor.model.modules()):
        raise ModelError(
            name, "carries a PEFT adapter; merge_and_unload() it first, and edit what that returns"
        )
    if not editor.deltas:
        raise ExportError(name, "no edit is in force, so there is nothing to export")
    updates: dict[str, list[LowRank | Dense]] = {}
    for delta in editor.deltas:
        if not delta.parts or any(isinstance(part, SideMemory) for part in delta.parts):
            raise ExportError(
                f"delta {delta.id}",
                f"method {delta.method!r} keeps its edits beside the weights, where no checkpoint and no "
                "adapter holds them; serve the delta file itself: "
                "Editor.from_pretrained(MODEL).load(DELTA)",
            )
        for part in delta.weights():
            updates.setdefault(part.weight, []).append(part)
    if all(_is_original(editor.weights, path) for path in updates):
        raise ExportError(
            name,
            "has the bits of the unedited model: it is inside original(), or the edits are too small",
        )
    return dict(updates)


def _is_adapter(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"


def _is_original(weights: Weights, path: str) -> bool:
    base, live = weights.base_of(path), weights.matrix(path).cpu()
    return torch.equal(base, live) or torch.equal(base.t(), live)


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Lend the folder that becomes ``out``, and say in one sentence why it does not."""
    try:
        with whole_folder(out) as folder:
            yield folder
    except KeditError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise _refusal(out, error) from error


def _refusal(out: Path, error: Exception) -> ExportError:
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return ExportError(str(out), f"cannot be written ({reason})")


def _ids(editor: Editor) -> tuple[str, ...]:
    return tuple(delta.id for delta in editor.deltas)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
