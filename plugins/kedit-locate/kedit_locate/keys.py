"""Keys: what the edited projection reads at the subject's last token; and what a module writes there."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kedit_core.pieces import Projection
from kedit_core.tokens import check_context
from kedit_locate.capture import inputs_of, output_of
from kedit_locate.rows import EditRows, Row, padded

Columns = Literal["both", "half"]
"""Which keys stand for an edit: see :func:`columns_of`."""

_ROWS = 256  # rows of one forward


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
    model: nn.Module, edits: Sequence[EditRows], down: Projection, columns: Columns
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
    """
    rows = [row for edit in edits for row in (edit.anchor, *edit.rewrites)]
    counts = [1 + len(edit.rewrites) for edit in edits]
    found = torch.split(keys_of(model, rows, down), counts)
    return torch.stack([_columns(own[0], own[1], own[2:], columns) for own in found])


def mean_key(keys: Tensor) -> Tensor:
    """Return the mean of an edit's keys (rows, in_features), every row alike: (in_features,)."""
    return keys.mean(0)


def _columns(anchor: Tensor, bare: Tensor, prefixed: Tensor, columns: Columns) -> Tensor:
    """Return (columns, in_features) from (in_features,), (in_features,), (prefixes, in_features)."""
    mean = prefixed.mean(0) if len(prefixed) else bare
    return torch.stack([anchor, mean]) if columns == "both" else ((bare + mean) / 2)[None]


def _at_lookups(
    model: nn.Module, rows: Sequence[Row], read: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return what ``read`` finds at the lookup token of every row, (rows, features)."""
    check_context(model, max(len(row.ids) for row in rows))
    found = []
    for start in range(0, len(rows), _ROWS):
        part = [row.prompt for row in rows[start : start + _ROWS]]
        ids, mask = padded(part, next(model.parameters()).device)
        states = read(ids, mask)  # (rows, tokens, features)
        last = mask.sum(1) - 1
        found.append(states[torch.arange(len(part), device=last.device), last])
    states = torch.cat(found)
    return states.to(torch.promote_types(states.dtype, torch.float32))
