"""What a shard adds to its matrix: factors, or the entries under a mask."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.deltas import Dense, LowRank, update_of
from kedit_core.digests import digest
from kedit_wise.masks import packed, unpacked


@frozen(kw_only=True)
class Masked:
    """An update of which only the entries under a mask are kept; all others are zero.

    Attributes:
        values: (entries,) in the order of the matrix.
        bits: (bytes,) uint8, the mask as ``masks.packed`` writes it; None where all entries are kept.
        shape: (out_features, in_features).
    """

    values: Tensor = field(eq=digest, repr=False)
    bits: Tensor | None = field(eq=False, repr=False)
    shape: tuple[int, int]

    @property
    def matrix(self) -> Tensor:
        """Return it whole, (out_features, in_features)."""
        if self.bits is None:
            return self.values.reshape(self.shape)
        found = self.values.new_zeros(self.shape)
        found[unpacked(self.bits, self.shape)] = self.values
        return found


@frozen(kw_only=True)
class Factored:
    """An update ``left @ right``.

    Attributes:
        left: (out_features, rank).
        right: (rank, in_features).
    """

    left: Tensor = field(eq=digest, repr=False)
    right: Tensor = field(eq=digest, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out_features, in_features)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def matrix(self) -> Tensor:
        """Return it whole, (out_features, in_features)."""
        return self.left @ self.right


Update = Masked | Factored
"""What a shard adds to the matrix that it stands beside."""


def masked(matrix: Tensor, mask: Tensor | None) -> Masked:
    """Return the entries of a matrix (out_features, in_features) under a mask of its shape."""
    matrix = matrix.cpu()
    values = matrix.flatten() if mask is None else matrix[mask.cpu()]
    bits = None if mask is None else packed(mask.cpu())
    return Masked(values=values.clone(), bits=bits, shape=(matrix.shape[0], matrix.shape[1]))


def as_parts(update: Update | None, weight: str) -> tuple[LowRank | Dense, ...]:
    """Return an update as changes of the weight itself, for looking at the model with it.

    Args:
        update: of a shard, or None.
        weight: path of the parameter.
    """
    if update is None:
        return ()
    if isinstance(update, Factored):
        return (LowRank(weight=weight, left=update.left, right=update.right),)
    return (Dense(weight=weight, update=update.matrix),)


def with_parts(update: Update | None, parts: Sequence[LowRank | Dense]) -> Update | None:
    """Return an update with changes of the weight added to it; factors while these are smaller.

    Args:
        update: of a shard, or None.
        parts: in the order in which they were made.
    """
    for part in parts:
        if isinstance(part, LowRank) and not isinstance(update, Masked):
            left, right = part.left.cpu(), part.right.cpu()
            if update is not None:
                left = torch.cat([update.left, left], dim=1)
                right = torch.cat([update.right, right], dim=0)
            both = update_of(part.weight, left, right)
        else:
            more = part.update if isinstance(part, Dense) else part.left @ part.right
            whole = more.cpu() if update is None else update.matrix + more.cpu()
            both = Dense(weight=part.weight, update=whole)
        update = (
            Factored(left=both.left, right=both.right)
            if isinstance(both, LowRank)
            else masked(both.update, None)
        )
    return update


def tensors_of(update: Update) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that an update is kept as, by name."""
    if isinstance(update, Factored):
        yield from (("left", update.left), ("right", update.right))
        return
    yield "values", update.values
    if update.bits is not None:
        yield "bits", update.bits


def update_from(tensors: Mapping[str, Tensor], prefix: str, shape: tuple[int, int]) -> Update:
    """Return the update that was kept as tensors.

    Args:
        tensors: of a memory.
        prefix: how the names of its own begin.
        shape: (out_features, in_features).

    Raises:
        KeyError: one of them is missing.
    """
    if f"{prefix}left" in tensors:
        return Factored(left=tensors[f"{prefix}left"], right=tensors[f"{prefix}right"])
    return Masked(values=tensors[f"{prefix}values"], bits=tensors.get(f"{prefix}bits"), shape=shape)
