"""Many values written into several layers at once, in small steps until they stick.

Each layer's down-projection takes a share of what is still missing at the target site, with the update
that disturbs least (``solver``), and the next layer sees what the ones before it wrote (Meng et al., 2022,
arXiv:2210.07229). One write rarely brings a target all the way: with small steps (a tight clamp, a strong
penalty) what has not stuck is searched for anew from the partly edited model and written again. Keys of
earlier edits, and of those in the batch that stick already, count in the metric as much as the new ones.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from kedit_core import Delta, Weights
from kedit_core.deltas import Dense, LowRank, update_of
from kedit_core.pieces import Projection
from kedit_core.progress import Progress
from kedit_locate.asking import probabilities
from kedit_locate.conflicts import Conflicts, conflicts_of, conflicts_with, held_by
from kedit_locate.keys import carried, columns_of, count_of, written_by
from kedit_locate.plans import Find, Plan, Wanted, Written
from kedit_locate.rows import EditRows
from kedit_locate.solver import Factors, ridge_update
from kedit_locate.sticking import far_enough, sticks_at
from kedit_locate.values import Values

_SILENT = Progress()


def write_until_it_sticks(
    model: nn.Module,
    edits: Sequence[EditRows],
    plan: Plan,
    find: Find,
    previous: Sequence[Delta],
    weights: Weights,
    progress: Progress = _SILENT,
) -> Written:
    """Return the updates that write the values of ``edits``; the model is as before.

    Args:
        model: in ``eval`` mode, earlier edits in it.
        edits: rows of each.
        plan: where and how.
        find: searches for values.
        previous: deltas of the same method in force, oldest first; their keys are in ``carry``.
        weights: of the model.
        progress: told of keys read, systems solved and targets asked for.
    """
    norms = norms_of(model, edits, plan.site, weights)
    batch = _Batch(model, edits, plan, previous, weights, progress)
    until = sticks_at(plan.until, plan.crowded, batch.filled)
    waiting = list(range(len(edits)))
    searched: dict[int, float] = {}  # by edit; the first pass searches for all
    found: list[Values] = []
    passes = []
    for number in range(plan.passes):
        with batch.shown():
            found.append(find(_wanted(edits, norms, waiting, plan, until, number)))
        searched |= zip(waiting, found[-1].nll, strict=True)
        batch.write(waiting, found[-1].value)
        said = batch.said()
        passes.append({"edits": len(waiting), "mean": sum(said) / len(said), "least": min(said)})
        if not (waiting := [n for n, one in enumerate(said) if one < until]):
            break
    if previous and plan.shrink < 1:
        batch.shrink(plan.shrink)
        said = batch.said()
    return Written(
        parts=batch.parts,
        until=until,
        carry=batch.keys,
        passes=tuple(passes),
        probability=said,
        searched=tuple(searched.values()),
        conditions=batch.conditions,
        conflicts=batch.conflicts,
        **_of_searches(found),
    )


def _of_searches(found: Sequence[Values]) -> dict[str, Any]:
    """Return what the searches of all passes tell of themselves."""
    return {
        "sizes": tuple(values.sizes for values in found),
        "refusal": next((values.refusal for values in found if values.refusal), ""),
        "apart": any(values.apart for values in found),
    }


def _wanted(
    edits: Sequence[EditRows],
    norms: Tensor,
    waiting: Sequence[int],
    plan: Plan,
    until: float,
    number: int,
) -> Wanted:
    return Wanted(
        edits=[edits[n] for n in waiting],
        norms=norms[list(waiting)],
        stop=far_enough(until) if plan.passes > 1 else None,
        number=number,
    )


def norms_of(model: nn.Module, edits: Sequence[EditRows], site: str, weights: Weights) -> Tensor:
    """Return the norm of what a site writes on each bare prompt in the unedited model, (requests,).

    A method that searches at further sites than that of its plan asks for theirs.

    Args:
        model: in ``eval`` mode.
        edits: rows of each.
        site: path of a module.
        weights: of the model.
    """
    with weights.original():
        norms: Tensor = _bare_states(model, edits, site).norm(dim=1)
    return norms


class _Batch:
    """The updates of one batch while they grow."""

    def __init__(
        self,
        model: nn.Module,
        edits: Sequence[EditRows],
        plan: Plan,
        previous: Sequence[Delta],
        weights: Weights,
        progress: Progress,
    ) -> None:
        self._model, self._edits, self._plan, self._weights = model, edits, plan, weights
        self._previous, self._progress = previous, progress
        self.conflicts, self._asked = Conflicts(), torch.empty(0)
        self._keys: dict[str, Tensor] = {}  # (requests, columns, in_features) each
        self._past = [carried(previous if plan.exact else (), down) for down in plan.downs]
        self._factors: list[list[Factors]] = [[] for _ in plan.downs]

    @property
    def parts(self) -> tuple[LowRank | Dense, ...]:
        """Return one update a layer that was written."""
        return tuple(
            update_of(
                down.weight,
                torch.cat([one.left for one in own], dim=1),
                torch.cat([one.right for one in own], dim=0),
            )
            for down, own in zip(self._plan.downs, self._factors, strict=True)
            if own
        )

    @property
    def filled(self) -> float:
        """Return the keys of earlier edits and of these as a share of the narrowest layer's inputs."""
        own = len(self._edits) * count_of(self._plan.columns)
        return max(
            (len(past) + own) / down.in_features
            for past, down in zip(self._past, self._plan.downs, strict=True)
        )

    def shown(self) -> Any:
        """Return the block in which the model has the updates so far in it."""
        return self._weights.temporarily(self.parts)

    def said(self) -> tuple[float, ...]:
        """Return with what probability each target is said with the updates so far."""
        with self.shown():
            return probabilities(self._model, self._edits, self._progress)

    @property
    def conditions(self) -> tuple[float, ...]:
        """Return the worst condition number of each layer's systems."""
        return tuple(max(one.condition for one in own) for own in self._factors)

    @property
    def keys(self) -> dict[str, Tensor]:
        """Return the keys of all edits as the last write read them, by projection.

        They are those of the model as it ends up: a layer's keys hang on the layers below it, which
        were written before they were read.
        """
        return {path: keys.flatten(0, 1) for path, keys in self._keys.items()}

    def shrink(self, share: float) -> None:
        """Leave a share of every update's length."""
        self._factors = [
            [evolve(one, left=share * one.left) for one in own] for own in self._factors
        ]

    def write(self, waiting: Sequence[int], values: Tensor) -> None:
        """Spread what is missing for some edits to have their values (requests, width), layer by layer."""
        some = [self._edits[n] for n in waiting]
        for place, down in enumerate(self._plan.downs):
            with self.shown():
                keys = self._read(down)
                missing = values - _bare_states(self._model, some, self._plan.site)
            left = len(self._plan.downs) - place
            if not self._factors[place]:
                self._compare(place, keys, missing)
            share = missing / (left if self._plan.shares == "linear" else sqrt(left))
            with self._progress.task("solving", len(some), "edits") as advance:
                update = self._solved(place, keys, waiting, share)
                advance(len(some))
            self._factors[place].append(update)

    def _read(self, down: Projection) -> Tensor:
        """Read and keep the keys of all edits, (requests, columns, in_features)."""
        with self._progress.task("reading keys", len(self._edits), "edits") as advance:
            keys = columns_of(self._model, self._edits, down, self._plan.columns, advance)
        self._keys[down.path] = keys
        return keys

    def _compare(self, place: int, keys: Tensor, missing: Tensor) -> None:
        """Compare the batch where lower layers can tell no more apart, earlier edits before keys move."""
        down, metric = self._plan.downs[place], self._plan.metrics[place]
        words = [edit.words for edit in self._edits]
        if not place:
            self._asked = missing
            held = held_by(self._previous, down, keys)
            self.conflicts = conflicts_with(*held, words, keys, missing, metric)
        if place == len(self._plan.downs) - 1:
            among = conflicts_of(words, keys, self._asked, metric)
            self.conflicts = self.conflicts.and_others(among)

    def _solved(self, place: int, keys: Tensor, waiting: Sequence[int], share: Tensor) -> Factors:
        """Return the update of one layer that writes a share (waiting requests, width)."""
        new = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
        new[list(waiting)] = True
        held = [self._past[place].to(keys)]
        if self._plan.exact:
            held.append(keys[~new].flatten(0, 1))
        return ridge_update(
            keys[new].flatten(0, 1),
            share.repeat_interleave(keys.shape[1], dim=0),
            self._plan.metrics[place],
            self._plan.penalty,
            torch.cat(held),
        )


def _bare_states(model: nn.Module, edits: Sequence[EditRows], site: str) -> Tensor:
    """Return what the site writes on each bare prompt, (requests, width)."""
    return written_by(model, [edit.rewrites[0] for edit in edits], site)
