"""Several updates of one matrix made one, when edits are made and never when they are used.

TIES (Yadav et al., 2023, arXiv:2306.01708): of each update the largest entries are kept; for each entry the
sign with more weight behind it is elected; the entry is the weighted mean of those that agree with it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def merged(
    updates: Sequence[Tensor],
    weights: Sequence[float],
    how: Literal["ties", "linear"],
    density: float = 1.0,
) -> Tensor:
    """Return one update for several, (out_features, in_features).

    Args:
        updates: (out_features, in_features) each.
        weights: of each.
        how: ``linear`` is their weighted sum.
        density: share of an update's entries that ``ties`` keeps, zeros among the entries.
    """
    if how == "linear":
        return torch.stack([w * one for w, one in zip(weights, updates, strict=True)]).sum(0)
    kept = torch.stack(
        [w * _largest(one, density) for w, one in zip(weights, updates, strict=True)]
    )
    elected = kept.sum(0).sign()  # (out_features, in_features)
    agree = (kept.sign() == elected) & (kept != 0)
    votes = torch.tensor(list(weights), dtype=kept.dtype, device=kept.device)
    behind = (agree * votes[:, None, None]).sum(0)
    total = torch.where(agree, kept, 0.0).sum(0)
    return torch.where(behind > 0, total / behind.clamp(min=torch.finfo(kept.dtype).tiny), 0.0)


def _largest(update: Tensor, density: float) -> Tensor:
    """Return an update without its smallest entries."""
    count = round(density * update.numel())
    if count >= update.numel():
        return update
    kept = update.abs().flatten().topk(max(count, 1)).indices
    found = torch.zeros_like(update).flatten()
    found[kept] = update.flatten()[kept]
    return found.reshape(update.shape)
