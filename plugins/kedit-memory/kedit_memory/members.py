"""The edits of a memory: listed, added, taken out, and two memories made one.

A tensor of a memory whose name begins with ``edits.`` holds one row an edit, in the order of the delta's
requests; all other tensors and the settings are the same whatever the memory holds. So an edit is added by
appending rows, and taken out by leaving them out, exactly.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core.deltas import Delta, SideMemory
from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_core.requests import EditRequest, as_requests

EDITS = "edits."
"""How the names of tensors begin that hold one row an edit."""


@frozen(kw_only=True)
class Members:
    """The edits of a memory.

    Attributes:
        requests: one each.
        rows: per name, without its prefix, a tensor (edits, …).
    """

    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    rows: Mapping[str, Tensor] = field(eq=False, repr=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """Return their ids."""
        return tuple(request.id for request in self.requests)

    def without(self, ids: Collection[str]) -> "Members":
        """Return the same without some edits."""
        kept = [place for place, name in enumerate(self.ids) if name not in ids]
        if len(kept) == len(self.requests):
            return self
        rows = {name: one[kept] for name, one in self.rows.items()}
        return Members(requests=[self.requests[place] for place in kept], rows=rows)

    def plus(self, other: "Members") -> "Members":
        """Return these edits and then those of another memory that are not here yet."""
        new = other.without(self.ids)
        if not self.requests:
            return new
        rows = {name: torch.cat([one, new.rows[name]]) for name, one in self.rows.items()}
        return Members(requests=(*self.requests, *new.requests), rows=rows)

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows as a memory holds them."""
        return {EDITS + name: one for name, one in self.rows.items()}


def memory_of(delta: Delta) -> SideMemory:
    """Return the one part of a memory's delta.

    Raises:
        DeltaError: it has none, or something else.
    """
    part = delta.parts[0] if len(delta.parts) == 1 else None
    if not isinstance(part, SideMemory):
        raise DeltaError(f"delta {delta.id}", "holds no side memory")
    return part


def members_of(delta: Delta) -> Members:
    """Return the edits of a memory.

    Raises:
        DeltaError: its rows do not belong to its requests.
    """
    rows = {
        name.removeprefix(EDITS): one
        for name, one in memory_of(delta).tensors.items()
        if name.startswith(EDITS)
    }
    for name, one in rows.items():
        if len(one) != len(delta.requests):
            raise DeltaError(
                f"delta {delta.id}",
                f"{name} has {len(one)} rows for {len(delta.requests)} requests",
            )
    return Members(requests=delta.requests, rows=rows)


def shared_of(delta: Delta) -> dict[str, Tensor]:
    """Return the tensors of a memory that belong to no single edit."""
    tensors = memory_of(delta).tensors
    return {name: one for name, one in tensors.items() if not name.startswith(EDITS)}


def merge(memories: Sequence[Delta]) -> Delta:
    """Return one memory with the edits of several, the first one's first; who comes first counts.

    Args:
        memories: of one method, over one model, trained alike.

    Raises:
        DeltaError: they differ in more than their edits.
    """
    first, *others = memories
    held, shared = members_of(first), _digests(shared_of(first))
    for other in others:
        same = (
            other.method == first.method
            and memory_of(other).at == memory_of(first).at
            and memory_of(other).settings == memory_of(first).settings
            and other.provenance.base == first.provenance.base
            and _digests(shared_of(other)) == shared
        )
        if not same:
            raise DeltaError(
                f"delta {other.id}",
                f"cannot be merged with {first.id}: they differ in more than the edits they hold",
            )
        held = held.plus(members_of(other))
    part = evolve(memory_of(first), tensors={**shared_of(first), **held.tensors()})
    return evolve(first, requests=held.requests, parts=[part])


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: digest(one) for name, one in tensors.items()}
