"""Which entries of the side weights a shard may change, and how that is stored: one bit an entry."""

from math import ceil

import torch
from torch import Tensor


def drawn(
    shape: tuple[int, int], share: float, shard: int, seed: int, *, disjoint: bool
) -> Tensor | None:
    """Return the mask of a shard, (out_features, in_features) bool; None where it may change everything.

    Disjoint masks are slices of one draw: with u uniform in [0, 1) for each entry, shard n has those with
    n ≤ u / share < n + 1. When the slices are used up the next shards begin with another draw.

    Args:
        shape: (out_features, in_features).
        share: of the entries.
        shard: its number, from 0.
        seed: of the draw.
        disjoint: change no entry that another shard of the same draw changes.
    """
    if share >= 1.0:
        return None
    slices = int(1 / share + 1e-9) if disjoint else 1
    draw, place = divmod(shard, slices)
    chance = torch.Generator().manual_seed(_mixed(seed, draw))
    level = torch.rand(shape, generator=chance)  # (out_features, in_features)
    return (level >= place * share) & (level < (place + 1) * share)


def packed(mask: Tensor) -> Tensor:
    """Return a mask as bits, (bytes,) uint8, the first entry in the lowest bit of the first byte."""
    flat = mask.flatten().to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)  # (bytes, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the mask that :func:`packed` wrote, (out_features, in_features) bool.

    Raises:
        ValueError: there are too few or too many bits.
    """
    entries = shape[0] * shape[1]
    if len(bits) != ceil(entries / 8):
        raise ValueError(f"{len(bits)} bytes are no mask of {entries} entries")
    found = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # (bytes, 8)
    return found.flatten()[:entries].bool().reshape(shape)


def _mixed(seed: int, draw: int) -> int:
    return (seed * 1_000_003 + draw) % 2**63
