"""How many edits are searched for together, and how many of their rows share a forward.

Both are chosen by estimate so that what is kept for all edits takes half of a bound on memory, and what one
forward and backward pass takes the other half. They depend on the model's shape and the rows alone, so
that equal searches are cut alike; where a machine had less memory than that after all, what fitted is noted
in the provenance of the delta, and the same edits are cut so again.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby, repeat
from typing import Any

import torch
from attrs import frozen
from torch import nn

from kedit_locate.rows import EditRows

MEMORY = 2_000_000_000
"""Bytes that a search may take beside the model, unless it is told otherwise."""

_WIDTHS, _INNERS = 12, 8  # numbers of a token that a block keeps for its backward pass
_LOGITS = 4  # logits, their logarithms, gradients of both


@frozen(kw_only=True)
class Sizes:
    """How one lot of edits was cut.

    Attributes:
        edits: searched for together.
        rows: at most so many share a forward.
    """

    edits: int
    rows: int

    def halved(self) -> "Sizes":
        """Return half of both, 1 at least."""
        return Sizes(edits=max(self.edits // 2, 1), rows=max(self.rows // 2, 1))


def sizes_for(model: nn.Module, edits: Sequence[EditRows], skipped: int, memory: int) -> Sizes:
    """Return the sizes with which a search is estimated to stay within ``memory`` bytes.

    Args:
        model: that is searched.
        edits: rows of each edit.
        skipped: number of layers that do not run at each step.
        memory: bytes, beside the model.
    """
    rows = [row for edit in edits for row in (*edit.rewrites, edit.anchor)]
    before = max(row.lookup for row in rows)
    tokens = max(len(row.ids) - row.lookup for row in rows)
    picked = max(len(row.target) for row in rows) + 1
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    size = next(model.parameters()).element_size()
    exact = max(size, 4)
    kept = (2 * layers * before + tokens) * width * size  # of a row: keys and values, hidden states
    block = tokens * (_WIDTHS * width + _INNERS * inner) + 2 * (before + tokens) * width
    forward = (layers - skipped) * block * size + _LOGITS * picked * config.vocab_size * exact
    reading = before * (_WIDTHS * width + _INNERS * inner) * size  # of the prefix, one layer
    most = max(len(set(edit.rewrites)) + 1 for edit in edits)
    per_edit = most * kept + config.vocab_size * exact
    together = min(max(memory // 2 // per_edit, 1), len(edits))
    at_once = max(memory // 2 // max(forward, reading), 1)
    return Sizes(edits=together, rows=min(at_once, together * most))


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is not enough memory; on a CPU it has no class of its own.

    Args:
        error: that came up.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in said or "can't allocate memory" in said
    )


def noted(sizes: Iterable[Sizes]) -> list[list[int]]:
    """Return the lots of a search as JSON values: how many alike, and edits and rows of each.

    Args:
        sizes: in the order of the lots.
    """
    return [[len(list(own)), size.edits, size.rows] for size, own in groupby(sizes)]


def noted_before(notes: Mapping[str, Any], search: int) -> Iterable[Sizes]:
    """Return the lots of an earlier search of the same edits; none where the notes do not tell.

    Args:
        notes: of the delta that is made again, with :func:`noted` sizes of each search under ``sizes``.
        search: which of its searches, from 0.
    """
    every = notes.get("sizes")
    lots = every[search] if isinstance(every, list) and search < len(every) else None
    if not isinstance(lots, list) or not all(map(_is_noted, lots)):
        return ()  # notes come from files, which anybody may have written
    return chain.from_iterable(
        repeat(Sizes(edits=edits, rows=rows), count) for count, edits, rows in lots
    )


def _is_noted(lot: Any) -> bool:
    return (
        isinstance(lot, list) and len(lot) == 3 and all(type(one) is int and one > 0 for one in lot)
    )
