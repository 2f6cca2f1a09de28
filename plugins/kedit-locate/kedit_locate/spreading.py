"""Many values written into several layers at once, in small steps until they stick.

Each layer's down-projection takes a share of what is still missing at the target site, with the update
that disturbs least (``solver``), and the next layer sees what the ones before it wrote (Meng et al., 2022,
arXiv:2210.07229). One write rarely brings a target all the way: with small steps (a tight clamp, a strong
penalty) what has not stuck is searched for anew from the partly edited model and written again. Keys of
earlier edits, and of those in the batch that stick already, count in the metric as much as the new ones.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp, sqrt
from typing import Any, Literal

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core import Delta, Weights
from kedit_core.deltas import Dense, LowRank, update_of
from kedit_core.pieces import Projection
from kedit_core.scoring import score_answers
from kedit_locate.keys import Columns, columns_of, written_by
from kedit_locate.rows import EditRows, Row
from kedit_locate.solver import Factors, Metric, ridge_update
from kedit_locate.values import Values

Find = Callable[[Sequence[EditRows], Tensor], Values]
"""Search the values of edits, whose clamps are relative to norms (requests,), in the model as it is."""


@frozen(kw_only=True)
class Plan:
    """Where and how values are written.

    Attributes:
        downs: the down-projections, lowest layer first.
        metrics: of each.
        site: path of the module whose output the values are for; not above the last of ``downs``.
        penalty: λ, the weight of the second moment against the keys.
        columns: which keys stand for an edit.
        shares: ``linear`` writes 1/n of what is missing with n layers to go (MEMIT), ``root`` 1/√n (PMET).
        exact: earlier keys count in the metric.
        until: probability of the target (geometric mean over its tokens and over all contexts) at which
            an edit sticks.
        passes: writes at most.
    """

    downs: Sequence[Projection]
    metrics: Sequence[Metric] = field(repr=False)
    site: str
    penalty: float
    columns: Columns
    shares: Literal["linear", "root"]
    exact: bool
    until: float
    passes: int


@frozen(kw_only=True)
class Written:
    """What was written.

    Attributes:
        parts: one update a layer.
        carry: per projection the keys of this batch in the model as it is afterwards,
            (requests · columns, in_features), by the projection's path.
        passes: per pass how many edits it wrote, and the mean and the least probability after it.
        probability: (requests,) of each target at the end.
        searched: (requests,) mean NLL a token that the last search of each edit ended with.
        refusal: why a search ran the layers below its site; empty when it skipped them.
        apart: rows of different lengths were read apart, because pads would have changed what is said.
    """

    parts: tuple[LowRank | Dense, ...]
    carry: Mapping[str, Tensor] = field(repr=False)
    passes: tuple[Mapping[str, float], ...]
    probability: tuple[float, ...]
    searched: tuple[float, ...]
    refusal: str = ""
    apart: bool = False


def write_until_it_sticks(
    model: nn.Module,
    edits: Sequence[EditRows],
    plan: Plan,
    find: Find,
    previous: Sequence[Delta],
    weights: Weights,
) -> Written:
    """Return the updates that write the values of ``edits``; the model is as before.

    Args:
        model: in ``eval`` mode, earlier edits in it.
        edits: rows of each.
        plan: where and how.
        find: searches values in the model as it is.
        previous: deltas of the same method in force, oldest first; their keys are in ``carry``.
        weights: of the model.
    """
    with weights.original():
        norms = _bare_states(model, edits, plan.site).norm(dim=1)  # (requests,)
    batch = _Batch(model, edits, plan, previous, weights)
    waiting = list(range(len(edits)))
    searched = [0.0] * len(edits)
    passes, refusals, apart = [], [], False
    for _ in range(plan.passes):
        with batch.shown():
            values = find([edits[n] for n in waiting], norms[waiting])
        refusals.append(values.refusal)
        apart |= values.apart
        for n, nll in zip(waiting, values.nll, strict=True):
            searched[n] = nll
        batch.write(waiting, values.value)
        with batch.shown():
            said = _probabilities(model, edits)
        mean = sum(said) / len(said)
        passes.append({"edits": len(waiting), "mean": mean, "least": min(said)})
        waiting = [n for n, one in enumerate(said) if one < plan.until]
        if not waiting:
            break
    return Written(
        parts=batch.parts,
        carry=batch.keys(),
        passes=tuple(passes),
        probability=tuple(said),
        searched=tuple(searched),
        refusal=next(filter(None, refusals), ""),
        apart=apart,
    )


class _Batch:
    """The updates of one batch while they grow."""

    def __init__(
        self,
        model: nn.Module,
        edits: Sequence[EditRows],
        plan: Plan,
        previous: Sequence[Delta],
        weights: Weights,
    ) -> None:
        self._model, self._edits, self._plan, self._weights = model, edits, plan, weights
        self._past = [_past(previous if plan.exact else (), down) for down in plan.downs]
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

    def shown(self) -> Any:
        """Return the block in which the model has the updates so far in it."""
        return self._weights.temporarily(self.parts)

    def write(self, waiting: Sequence[int], values: Tensor) -> None:
        """Spread what is missing for some edits to have their values (requests, width), layer by layer."""
        some = [self._edits[n] for n in waiting]
        stuck = [edit for n, edit in enumerate(self._edits) if n not in set(waiting)]
        for place, down in enumerate(self._plan.downs):
            with self.shown():
                keys = self._columns(some, down)  # (requests, columns, in_features)
                missing = values - _bare_states(self._model, some, self._plan.site)
                held = [self._past[place].to(keys)]
                if stuck and self._plan.exact:
                    held.append(self._columns(stuck, down).flatten(0, 1))
            left = len(self._plan.downs) - place
            share = missing / (left if self._plan.shares == "linear" else sqrt(left))
            update = ridge_update(
                keys.flatten(0, 1),
                share.repeat_interleave(keys.shape[1], dim=0),
                self._plan.metrics[place],
                self._plan.penalty,
                torch.cat(held),
            )
            self._factors[place].append(update)

    def keys(self) -> dict[str, Tensor]:
        """Return the keys of the batch in the model as it ends up, by projection."""
        with self.shown():
            return {
                down.path: self._columns(self._edits, down).flatten(0, 1)
                for down in self._plan.downs
            }

    def _columns(self, edits: Sequence[EditRows], down: Projection) -> Tensor:
        return columns_of(self._model, edits, down, self._plan.columns)


def _past(previous: Sequence[Delta], down: Projection) -> Tensor:
    """Return the keys that earlier deltas wrote at, (earlier keys, in_features)."""
    held = [delta.carry[down.path] for delta in previous if down.path in delta.carry]
    return torch.cat(held) if held else torch.zeros(0, down.in_features)


def _bare_states(model: nn.Module, edits: Sequence[EditRows], site: str) -> Tensor:
    """Return what the site writes on each bare prompt, (requests, width)."""
    return written_by(model, [edit.rewrites[0] for edit in edits], site)


def _probabilities(model: nn.Module, edits: Sequence[EditRows]) -> list[float]:
    """Return the probability of each target, the geometric mean over its tokens and its contexts."""
    rows = [(n, row) for n, edit in enumerate(edits) for row in edit.rewrites]
    nll = [0.0 for _ in edits]
    for (n, _), one in zip(
        rows, score_answers(model, [_split(row) for _, row in rows]), strict=True
    ):
        nll[n] += one.nll / len(edits[n].rewrites)
    return [exp(-mean) for mean in nll]


def _split(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    prompt = len(row.ids) - len(row.target) + 1
    return row.ids[:prompt], row.target
