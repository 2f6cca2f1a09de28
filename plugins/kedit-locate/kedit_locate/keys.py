"""Keys: what the edited projection reads at the subject's last token; and what a module writes there."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kedit_core import Delta
from kedit_core.pieces import Projection
from kedit_core.progress import Advance
from kedit_core.tokens import check_context
from kedit_locate.capture import inputs_of, output_of
from kedit_locate.rows import EditRows, Row, padded

Columns = Literal["both", "half"]
"""Which keys stand for an edit: see :func:`columns_of`."""

_ROWS = 256  # rows of one forward
_EDITS = 256  # whose rows are read before any of them is given up for its columns


@torch.no_grad()
def keys_of(model: nn.Module, rows: Sequence[Row], down: Projection) -> Tensor:
    """Return the key of every row, (rows, in_features) float32 (float64 in a float64 model).

    A row is read up to its lookup token only, and the forward stops at the projection.

    Args:
        model: in ``eval`` mode.
        rows: of one or of many edits.
        down: the projection to edit.
    """
    return _at_lookups(
        model, rows, lambda ids, mask: inputs_of(model, [down.path], ids, mask)[down.path]
    )


@torch.no_grad()
def written_by(model: nn.Module, rows: Sequence[Row], path: str) -> Tensor:
    """Return what a module writes at every row's lookup token, (rows, out_features) float32 or more.

    Args:
        model: in ``eval`` mode.
        rows: of one or of many edits.
        path: of the module.
    """
    return _at_lookups(model, rows, lambda ids, mask: output_of(model, path, ids, mask))


def columns_of(
    model: nn.Module,
    edits: Sequence[EditRows],
    down: Projection,
    columns: Columns,
    advance: Advance | None = None,
) -> Tensor:
    """Return the keys that stand for each edit, (requests, columns, in_features).

    ``both`` are two: the subject's where a text begins with it, and the mean over the prompt behind
    the sampled prefixes. ``half`` is one, MEMIT's: half of it the bare prompt's, half that mean
    (arXiv:2210.07229; as in the authors' code).

    Args:
        model: in ``eval`` mode.
        edits: rows of each edit.
        down: the projection to edit.
        columns: which.
        advance: told how many edits more were read.
    """
    found = []
    for start in range(0, len(edits), _EDITS):
        some = edits[start : start + _EDITS]
        rows = [row for edit in some for row in (edit.anchor, *edit.rewrites)]
        counts = [1 + len(edit.rewrites) for edit in some]
        keys = torch.split(keys_of(model, rows, down), counts)
        found.append(torch.stack([_columns(own[0], own[1], own[2:], columns) for own in keys]))
        if advance is not None:
            advance(len(some))
    return torch.cat(found)


def carried(previous: Sequence[Delta], down: Projection) -> Tensor:
    """Return the keys that earlier deltas wrote at, (earlier keys, in_features).

    Args:
        previous: the deltas, oldest first; their keys are in ``carry``.
        down: the projection.
    """
    held = [delta.carry[down.path] for delta in previous if down.path in delta.carry]
    return torch.cat(held) if held else torch.zeros(0, down.in_features)


def mean_key(keys: Tensor) -> Tensor:
    """Return the mean of an edit's keys (rows, in_features), every row alike: (in_features,)."""
    return keys.mean(0)


def count_of(columns: Columns) -> int:
    """Return how many keys stand for an edit."""
    return 2 if columns == "both" else 1


def _columns(anchor: Tensor, bare: Tensor, prefixed: Tensor, columns: Columns) -> Tensor:
    """Return (columns, in_features) from (in_features,), (in_features,), (prefixes, in_features)."""
    mean = prefixed.mean(0) if len(prefixed) else bare
    return torch.stack([anchor, mean]) if columns == "both" else ((bare + mean) / 2)[None]


def _at_lookups(
    model: nn.Module, rows: Sequence[Row], read: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return what ``read`` finds at the lookup token of every row, (rows, features).

    Equal rows are read once, and those of like length together.
    """
    prompts = sorted({row.prompt for row in rows}, key=lambda prompt: (len(prompt), prompt))
    check_context(model, len(prompts[-1]))
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(prompts), _ROWS):
        part = prompts[start : start + _ROWS]
        ids, mask = padded(part, device)
        states = read(ids, mask)  # (rows, tokens, features)
        last = mask.sum(1) - 1
        found.append(states[torch.arange(len(part), device=last.device), last])
    states = torch.cat(found)
    places = {prompt: place for place, prompt in enumerate(prompts)}
    states = states[torch.tensor([places[row.prompt] for row in rows], device=states.device)]
    return states.to(torch.promote_types(states.dtype, torch.float32))
