"""Keys: what the edited projection reads at the subject's last token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kedit_core.pieces import Projection
from kedit_core.tokens import check_context
from kedit_locate.capture import inputs_of
from kedit_locate.rows import Row, padded

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
    check_context(model, max(len(row.ids) for row in rows))
    found = []
    for start in range(0, len(rows), _ROWS):
        part = [row.prompt for row in rows[start : start + _ROWS]]
        ids, mask = padded(part, next(model.parameters()).device)
        read = inputs_of(model, [down.path], ids, mask)[down.path]  # (rows, tokens, in_features)
        last = mask.sum(1) - 1
        found.append(read[torch.arange(len(part), device=last.device), last])
    keys = torch.cat(found)
    return keys.to(torch.promote_types(keys.dtype, torch.float32))


def mean_key(keys: Tensor) -> Tensor:
    """Return the mean of an edit's keys (rows, in_features), every row alike: (in_features,)."""
    return keys.mean(0)
