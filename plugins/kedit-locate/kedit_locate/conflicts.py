"""Edits that ask for different things at nearly the same key.

With c the cosine of two keys under M = C⁻¹, an update that writes d more at one and d less at the other
disturbs other keys by tr(ΔCΔᵀ) = 2 ‖d‖² / (1 - c): 1 / (1 - c) times as much as at a right angle. What such
a pair of edits gets is about the mean of what the two ask for, and no setting of the solver changes that.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core import Delta
from kedit_core.pieces import Projection
from kedit_locate.rows import words_of
from kedit_locate.solver import Metric

NEAR = 0.98
"""Cosine from which keys are nearly parallel: telling them apart disturbs fifty times as much."""

_APART = 0.5
"""Residuals differ when they are further apart than this share of the longer one."""

_BLOCK = 1024  # keys compared with all before them at a time
_NAMED = 3


@frozen(kw_only=True)
class Conflict:
    """Two edits whose keys are nearly parallel and whose values differ.

    Attributes:
        first: the earlier edit, in words.
        second: the later one.
        cosine: of their keys under M = C⁻¹.
    """

    first: str
    second: str
    cosine: float


@frozen(kw_only=True)
class Conflicts:
    """All such pairs.

    Attributes:
        count: how many there are.
        closest: those with the highest cosines.
    """

    count: int = 0
    closest: tuple[Conflict, ...] = ()

    def and_others(self, others: "Conflicts") -> "Conflicts":
        """Return these and others."""
        every = sorted((*self.closest, *others.closest), key=lambda one: -one.cosine)
        return Conflicts(count=self.count + others.count, closest=tuple(every[:_NAMED]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each of the closest pairs, and one that counts the others."""
        more = self.count - len(self.closest)
        said = [
            f"{one.first} and {one.second} have nearly the same key (cosine {one.cosine:.4f}) and different "
            "values: each gets about the mean of both"
            for one in self.closest
        ]
        return (
            *said,
            *([f"{more:,} further pairs of edits have nearly the same key"] if more else []),
        )


def conflicts_of(
    words: Sequence[str], keys: Tensor, residuals: Tensor, metric: Metric
) -> Conflicts:
    """Return the pairs of a batch's edits that ask for different things at nearly the same key.

    Args:
        words: what each edit is called, (requests,).
        keys: (requests, columns, in_features); two edits are as near as the nearest two keys of a column.
        residuals: (requests, out_features), what is asked to be written at the keys.
        metric: of the layer.
    """
    return _named(words, words, _near(_units(keys, metric), residuals))


def conflicts_with(
    held_words: Sequence[str],
    held: Tensor,
    words: Sequence[str],
    keys: Tensor,
    residuals: Tensor,
    metric: Metric,
) -> Conflicts:
    """Return the pairs of an earlier and a new edit that ask for different things at nearly the same key.

    An earlier one asks for nothing to change at its own.

    Args:
        held_words: what the earlier edits are called, (earlier edits,).
        held: their keys, (earlier edits, columns, in_features).
        words: what the new ones are called, (requests,).
        keys: (requests, columns, in_features).
        residuals: (requests, out_features).
        metric: of the layer.
    """
    return _named(held_words, words, _near(_units(keys, metric), residuals, _units(held, metric)))


def held_by(previous: Sequence[Delta], down: Projection, like: Tensor) -> tuple[list[str], Tensor]:
    """Return what the edits of earlier deltas are called, and the keys that they wrote at.

    Args:
        previous: the deltas, oldest first.
        down: the projection.
        like: keys (requests, columns, in_features) that theirs are compared with. Edits made with other
            settings may have another number of columns; then the last one is repeated.
    """
    earlier = [delta for delta in previous if down.path in delta.carry]
    held = [like[:0]]
    for delta in earlier:
        own = delta.carry[down.path].to(like)
        own = own.reshape(len(delta.requests), -1, own.shape[1])  # (requests, columns, in_features)
        held.append(own[:, [min(at, own.shape[1] - 1) for at in range(like.shape[1])]])
    return [words_of(one) for delta in earlier for one in delta.requests], torch.cat(held)


def _units(keys: Tensor, metric: Metric) -> list[Tensor]:
    """Return per column of (edits, columns, in_features) the keys whose products are cosines."""
    return [metric.units(keys[:, column]) for column in range(keys.shape[1])]


def _near(
    units: Sequence[Tensor], wanted: Tensor, held: Sequence[Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs (pairs, 2) of an edit and of one before it or held, and their cosines (pairs,)."""
    lengths = wanted.double().norm(dim=1)
    for start in range(0, len(wanted), _BLOCK):
        some = slice(start, start + _BLOCK)
        others = held if held is not None else [own[: start + _BLOCK] for own in units]
        products = [own[some] @ other.T for own, other in zip(units, others, strict=True)]
        cosines = torch.stack(products).amax(0).clamp(max=1.0)  # (block, others)
        near = cosines > NEAR
        if held is not None:
            near &= lengths[some, None] > 0
        else:
            near = near.tril(start - 1)
        if held is None and bool(near.any()):
            apart = lengths[some, None] ** 2 + lengths[: start + _BLOCK] ** 2
            apart -= 2 * (wanted[some] @ wanted[: start + _BLOCK].T).double()
            longer = torch.maximum(lengths[some, None], lengths[: start + _BLOCK])
            near &= apart > (_APART * longer) ** 2
        yield near.nonzero() + torch.tensor([start, 0], device=near.device), cosines[near]


def _named(
    others: Sequence[str], words: Sequence[str], found: Iterable[tuple[Tensor, Tensor]]
) -> Conflicts:
    """Return pairs of an edit and of another with their names, the closest first."""
    closest, count = [], 0
    for pairs, cosines in found:
        count += len(cosines)
        best = cosines.topk(min(_NAMED, len(cosines))).indices
        closest += [
            Conflict(first=others[other], second=words[own], cosine=cosine)
            for (own, other), cosine in zip(
                pairs[best].tolist(), cosines[best].tolist(), strict=True
            )
        ]
    closest.sort(key=lambda one: -one.cosine)
    return Conflicts(count=count, closest=tuple(closest[:_NAMED]))
