"""A side memory as data: shards that each hold an update of one matrix, and the edits that are in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core import Delta, EditRequest, SideMemory
from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_core.requests import as_requests
from kedit_memory.members import Members, members_of, memory_of
from kedit_memory.scope import ScopeClassifier, classifier_from
from kedit_wise.scoped import Scoped
from kedit_wise.updates import Update, tensors_of, update_from

_KEYS, _SHARD, _REACHED, _LOUD, _DIRECTION = "keys", "shard", "reached", "loud", "direction"
_PREFIX, _OUTSIDE, _SCOPE = "shard", "outside", "scope"


@frozen(kw_only=True)
class Shard:
    """One update, and from which distance on a prompt is in its scope.

    Attributes:
        update: of the matrix.
        threshold: what a prompt in its scope reaches at least.
        temperature: how fast the probability grows around it, on the logarithm of what is reached.
        drawn: how many shards were begun before it; which mask is its own.
        outside: (texts,) what irrelevant texts reach of it.
    """

    update: Update
    threshold: float = 1.0
    temperature: float = 1.0
    drawn: int = 0
    outside: Tensor = field(factory=lambda: torch.empty(0), eq=digest, repr=False)


def _several(shards: Iterable[Shard]) -> tuple[Shard, ...]:
    return tuple(shards)


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
        loud: (edits,) bool, whose keys irrelevant texts stir too, so that no prompt is routed by them.
        settings: how it is read, JSON values.
        scoped: what finds the edit that a prompt meets, where that is a trained classifier.
    """

    at: str
    shards: tuple[Shard, ...] = field(converter=_several)
    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    keys: Tensor = field(eq=digest, repr=False)
    shard: Tensor = field(eq=digest, repr=False)
    reached: Tensor = field(eq=digest, repr=False)
    loud: Tensor = field(eq=digest, repr=False)
    settings: Mapping[str, Any]
    scoped: Scoped | None = None

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
        rows = {
            _KEYS: self.keys,
            _SHARD: self.shard,
            _REACHED: self.reached,
            _LOUD: self.loud,
        }
        tensors: dict[str, Tensor] = {}
        about = dict(self.settings)
        if self.scoped is not None:
            rows[_DIRECTION] = self.scoped.directions
            tensors |= self.scoped.classifier.tensors()
            about[_SCOPE] = self.scoped.classifier.settings()
        tensors |= Members(requests=self.requests, rows=rows).tensors()
        settings = []
        for number, one in enumerate(self.shards):
            own = {**dict(tensors_of(one.update)), _OUTSIDE: one.outside}
            tensors |= {f"{_PREFIX}.{number:05}.{name}": t for name, t in own.items()}
            settings.append(
                {
                    "threshold": one.threshold,
                    "temperature": one.temperature,
                    "drawn": one.drawn,
                    "shape": list(one.update.shape),
                }
            )
        return SideMemory(at=self.at, tensors=tensors, settings={**about, "shards": settings})


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
                update=update_from(part.tensors, f"{_PREFIX}.{number:05}.", tuple(one["shape"])),
                threshold=float(one["threshold"]),
                temperature=float(one["temperature"]),
                drawn=int(one["drawn"]),
                outside=part.tensors[f"{_PREFIX}.{number:05}.{_OUTSIDE}"],
            )
            for number, one in enumerate(settings.pop("shards"))
        )
        scoped = None
        if _SCOPE in settings:
            scoped = Scoped(
                classifier=classifier_from(part.tensors, settings.pop(_SCOPE), f"delta {delta.id}"),
                directions=members.rows[_DIRECTION],
            )
        return SideMatrix(
            at=part.at,
            shards=shards,
            requests=members.requests,
            keys=members.rows[_KEYS],
            shard=members.rows[_SHARD],
            reached=members.rows[_REACHED],
            loud=members.rows.get(_LOUD, torch.zeros_like(members.rows[_SHARD]).bool()),
            settings=settings,
            scoped=scoped,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"delta {delta.id}", f"holds no whole side memory ({error})") from None


def merge(memories: Sequence[Delta]) -> Delta:
    """Return one memory with the shards of several, the first one's first; who comes first counts.

    An edit that two of them hold is the first one's. The shards stay apart, with their thresholds,
    which the next edit sets anew; one all of whose edits are in a memory before it is left out.

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
            and (more.at, more.settings, _classifier(more))
            == (held.at, held.settings, _classifier(held))
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
        added, numbers = torch.unique(more.shard[new], return_inverse=True)
        held = evolve(
            held,
            shards=(*held.shards, *(more.shards[number] for number in added.tolist())),
            requests=(*held.requests, *(more.requests[place] for place in new)),
            keys=torch.cat([held.keys, more.keys[new]]),
            shard=torch.cat([held.shard, numbers + len(held.shards)]),
            reached=torch.cat([held.reached, more.reached[new]]),
            loud=torch.cat([held.loud, more.loud[new]]),
            scoped=held.scoped and held.scoped.plus(_directions(more)[new]),
        )
    return evolve(first, requests=held.requests, parts=[held.as_part()])


def _classifier(memory: SideMatrix) -> ScopeClassifier | None:
    return None if memory.scoped is None else memory.scoped.classifier


def _directions(memory: SideMatrix) -> Tensor:
    return torch.empty(0) if memory.scoped is None else memory.scoped.directions
