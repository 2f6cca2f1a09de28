"""A side memory as data: shards that each hold an update of one matrix, and the edits that are in them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core import Delta, EditRequest, SideMemory
from kedit_core.deltas import Dense, LowRank, update_of
from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_core.requests import as_requests
from kedit_memory.members import Members, members_of, memory_of
from kedit_wise.masks import packed, unpacked

_KEYS, _SHARD, _REACHED = "keys", "shard", "reached"
_PREFIX = "shard"


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


@frozen(kw_only=True)
class Shard:
    """One update, and from which distance on a prompt is in its scope.

    Attributes:
        update: of the matrix.
        threshold: what a prompt in its scope reaches at least.
        temperature: how fast the probability grows around it, on the logarithm of what is reached.
        drawn: how many shards were begun before it; which mask is its own.
    """

    update: Update
    threshold: float = float("inf")
    temperature: float = 1.0
    drawn: int = 0


@frozen(kw_only=True)
class SideMatrix:
    """The whole memory beside one projection.

    Attributes:
        at: path of the projection.
        shards: in the order in which they were begun.
        requests: of the edits, in the order in which they were made.
        keys: (edits, columns, in_features) inputs of the projection that stand for each edit.
        shard: (edits,) int64, in which shard each is.
        reached: (edits,) what its own prompts reach, as they did when it was made.
        settings: how it is read, JSON values.
    """

    at: str
    shards: tuple[Shard, ...]
    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    keys: Tensor = field(eq=digest, repr=False)
    shard: Tensor = field(eq=digest, repr=False)
    reached: Tensor = field(eq=digest, repr=False)
    settings: Mapping[str, Any]

    def inside(self, shard: int) -> Tensor:
        """Return the places of a shard's edits, (edits of the shard,)."""
        return (self.shard == shard).nonzero()[:, 0]

    @property
    def thresholds(self) -> Tensor:
        """Return the threshold of every shard, (shards,) float64."""
        return torch.tensor([one.threshold for one in self.shards], dtype=torch.float64)

    @property
    def temperatures(self) -> Tensor:
        """Return the temperature of every shard, (shards,) float64."""
        return torch.tensor([one.temperature for one in self.shards], dtype=torch.float64)

    def as_part(self) -> SideMemory:
        """Return it as a delta holds it."""
        rows = {_KEYS: self.keys, _SHARD: self.shard, _REACHED: self.reached}
        members = Members(requests=self.requests, rows=rows)
        tensors = {**members.tensors()}
        settings = []
        for number, one in enumerate(self.shards):
            tensors |= {f"{_PREFIX}.{number:05}.{name}": t for name, t in _tensors(one.update)}
            settings.append(
                {
                    "threshold": one.threshold,
                    "temperature": one.temperature,
                    "drawn": one.drawn,
                    "shape": list(one.update.shape),
                }
            )
        return SideMemory(
            at=self.at, tensors=tensors, settings={**self.settings, "shards": settings}
        )


def side_matrix_of(delta: Delta) -> SideMatrix:
    """Return the memory that a delta holds.

    Raises:
        DeltaError: it holds none, or only a piece of one.
    """
    part, members = memory_of(delta), members_of(delta)
    try:
        settings = dict(part.settings)
        shards = tuple(
            Shard(
                update=_update(part.tensors, f"{_PREFIX}.{number:05}.", tuple(one["shape"])),
                threshold=float(one["threshold"]),
                temperature=float(one["temperature"]),
                drawn=int(one["drawn"]),
            )
            for number, one in enumerate(settings.pop("shards"))
        )
        return SideMatrix(
            at=part.at,
            shards=shards,
            requests=members.requests,
            keys=members.rows[_KEYS],
            shard=members.rows[_SHARD],
            reached=members.rows[_REACHED],
            settings=settings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"delta {delta.id}", f"holds no whole side memory ({error})") from None


def merge(memories: Sequence[Delta]) -> Delta:
    """Return one memory with the shards of several, the first one's first; who comes first counts.

    An edit that two of them hold is the first one's. The shards stay apart, with their thresholds.

    Args:
        memories: over one model, beside one projection, made with settings that go together.

    Raises:
        DeltaError: they do not belong together.
    """
    first, *others = memories
    held = side_matrix_of(first)
    for other in others:
        more = side_matrix_of(other)
        together = (
            other.method == first.method
            and (more.at, more.settings) == (held.at, held.settings)
            and other.provenance.base == first.provenance.base
        )
        if not together:
            raise DeltaError(
                f"delta {other.id}",
                f"cannot be merged with {first.id}: they stand beside different modules or are read "
                "differently",
            )
        known = {request.id for request in held.requests}
        new = [place for place, one in enumerate(more.requests) if one.id not in known]
        held = evolve(
            held,
            shards=(*held.shards, *more.shards),
            requests=(*held.requests, *(more.requests[place] for place in new)),
            keys=torch.cat([held.keys, more.keys[new]]),
            shard=torch.cat([held.shard, more.shard[new] + len(held.shards)]),
            reached=torch.cat([held.reached, more.reached[new]]),
        )
    return evolve(first, requests=held.requests, parts=[held.as_part()])


def _tensors(update: Update) -> Iterator[tuple[str, Tensor]]:
    if isinstance(update, Factored):
        yield from (("left", update.left), ("right", update.right))
        return
    yield "values", update.values
    if update.bits is not None:
        yield "bits", update.bits


def _update(tensors: Mapping[str, Tensor], prefix: str, shape: tuple[int, int]) -> Update:
    if f"{prefix}left" in tensors:
        return Factored(left=tensors[f"{prefix}left"], right=tensors[f"{prefix}right"])
    return Masked(values=tensors[f"{prefix}values"], bits=tensors.get(f"{prefix}bits"), shape=shape)
