"""The sum that a written weight is: its original, factors in chunks, dense updates."""

from collections.abc import Sequence
from operator import is_

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.deltas import Dense, LowRank

EXPORT_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that adapter runtimes accept; the largest is the rank of a chunk."""


@frozen(eq=False)
class _Finished:
    """A weight with its first full chunks in, so that long streams multiply only the last one."""

    ranks: int
    factors: tuple[LowRank, ...]
    value: Tensor = field(repr=False)  # (out_features, in_features), float32 or float64


class Sums:
    """Evaluates sums, and keeps those of finished chunks so that a long stream multiplies only its last one."""

    def __init__(self) -> None:
        self._finished: dict[str, _Finished] = {}

    def forget(self, path: str) -> None:
        """Drop what is kept of a weight that has no change in force."""
        self._finished.pop(path, None)

    def of(
        self, path: str, base: Tensor, factors: Sequence[LowRank], dense: Sequence[Dense]
    ) -> Tensor:
        """Return base + Σ left·right + Σ update, (out_features, in_features), before the cast.

        Args:
            path: of the weight, to keep its finished chunks under.
            base: its original (out_features, in_features).
            factors: in the order in which they came into force.
            dense: likewise.
        """
        exact = _exact(base.dtype)
        chunk = EXPORT_RANKS[-1]
        finished = self._finished.get(path)
        if finished is not None and _begins_with(factors, finished.factors):
            out, done = finished.value.clone(), finished.ranks
        else:
            out, done = base.to(exact, copy=True), 0
        if factors:
            left, right = joined(factors, base)  # (out_features, ranks), (ranks, in_features)
            while done < left.shape[1]:
                stop = min(done + chunk, left.shape[1])
                out += chunk_product(left[:, done:stop], right[done:stop])
                done = stop
                if stop % chunk == 0:
                    kept = _covering(factors, stop)
                    self._finished[path] = _Finished(stop, kept, out.clone())
        for part in dense:
            out += part.update.to(out)
        return out


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums for a weight of this dtype are made in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def joined(factors: Sequence[LowRank], base: Tensor) -> tuple[Tensor, Tensor]:
    """Return all left factors side by side, all right factors one below the other, as sums need them."""
    dtype = _exact(base.dtype)
    left = torch.cat([part.left for part in factors], dim=1).to(base.device, dtype)
    right = torch.cat([part.right for part in factors], dim=0).to(base.device, dtype)
    return left, right


def chunk_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right of one chunk, (out_features, in_features), in the bits that every writer shares.

    Args:
        left: (out_features, ranks) of at most the largest of ``EXPORT_RANKS``.
        right: (ranks, in_features).
    """
    return _padded(left, 1) @ _padded(right, 0)


def _padded(factor: Tensor, dim: int) -> Tensor:
    """Return a factor zero-padded along its rank to the next export rank."""
    rank = factor.shape[dim]
    missing = next(size for size in EXPORT_RANKS if size >= rank) - rank
    shape = [missing if place == dim else size for place, size in enumerate(factor.shape)]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)


def _begins_with(factors: Sequence[LowRank], start: Sequence[LowRank]) -> bool:
    return len(factors) >= len(start) and all(map(is_, factors, start))


def _covering(factors: Sequence[LowRank], ranks: int) -> tuple[LowRank, ...]:
    """Return the first factors that hold together at least ``ranks`` ranks."""
    held = 0
    for count, part in enumerate(factors, 1):
        held += part.left.shape[1]
        if held >= ranks:
            return tuple(factors[:count])
    return tuple(factors)
