"""Which shard a prompt goes to: what the side weights would change at its tokens decides.

The original measures the distance ‖Δ k‖ between side and main output, k what the projection reads at a token
(Wang et al., 2024, arXiv:2405.14768, eq. 3). An update that holds many edits moves every token by something;
what tells that a token belongs to an edit is that it moves as far and where the edit's own key does. With
m = Δ kₑ the move at the key of edit e,

    match(k) = max over edits e of ⟨Δ k, m⟩ / max(‖m‖², ‖Δ k‖²)

is 1 at a key, never more, and small for a move that is shorter, longer or in another direction. With r what a
prompt reaches, by its best token (or the mean of all), and t the threshold of a shard,

    p = σ(log(r / t) / temperature)

is the probability that it is in the shard's scope; from ½ on, that is from r = t on, it is. Edits whose key
is stirred by texts of any kind (``thresholds.loud_of``), such as a subject's last full stop, do not count.

A trained classifier may decide instead (``scoped``); then a prompt goes to the shard of the edit that it meets.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_memory.kept import OUTSIDE
from kedit_wise.kernels import side_distance, side_match
from kedit_wise.scoped import Scoped
from kedit_wise.shards import SideMatrix

Measure = Literal["match", "max", "mean"]
"""What is measured at a prompt's tokens, and how they make one number."""

_TINY = 1e-9


@frozen(kw_only=True)
class Prompts:
    """What the projection reads at the tokens of prompts.

    Attributes:
        inputs: (prompts, tokens, in_features).
        real: (prompts, tokens) bool, the prompts' own tokens.
    """

    inputs: Tensor = field(repr=False)
    real: Tensor = field(repr=False)

    @property
    def flat(self) -> Tensor:
        """Return the inputs of all tokens, (prompts · tokens, in_features)."""
        return self.inputs.flatten(0, 1)

    def some(self, places: Tensor, device: torch.device | None = None) -> "Prompts":
        """Return those at ``places`` (some prompts,), on a device; None leaves them where they are."""
        inputs, real = self.inputs[places], self.real[places]
        return Prompts(
            inputs=inputs.to(device or inputs.device), real=real.to(device or real.device)
        )


@frozen(kw_only=True)
class Found:
    """Where prompts go.

    Attributes:
        shard: (prompts,) int64, ``OUTSIDE`` for none.
        probability: (prompts,) of being in the scope of the shard that comes nearest.
        edit: (prompts,) int64, which of the memory's edits each matches best in its shard.
    """

    shard: Tensor
    probability: Tensor
    edit: Tensor


class Router:
    """Finds the shard of prompts.

    Attributes:
        updates: (shards, out_features, in_features) on the device of the projection.
    """

    def __init__(self, memory: SideMatrix, device: torch.device, dtype: torch.dtype) -> None:
        """Keep what is needed of ``memory`` on a device, its updates in ``dtype``."""
        inside = [memory.inside(number) for number in range(len(memory.shards))]
        self.updates = updates_of(memory, device, dtype)
        matrices = [one.update.matrix for one in memory.shards]
        moves = [
            memory.keys[places].to(one).flatten(0, 1) @ one.T
            for places, one in zip(inside, matrices, strict=True)
        ]  # (edits · columns, out_features) each
        sizes = [one.square().sum(1) for one in moves]
        probes = [
            (move / size.clamp(min=_TINY)[:, None]) @ one
            for move, size, one in zip(moves, sizes, matrices, strict=True)
        ]
        self._columns = columns = memory.keys.shape[1]
        heard = ~memory.loud[torch.cat(inside)].repeat_interleave(columns)
        # The probe of a loud key matches nothing.
        stacked = torch.cat(probes) * heard[:, None]  # (probes, in_features)
        self._probes = stacked.to(device, dtype)
        self._sizes = torch.cat(sizes).to(device)
        self._ends = torch.tensor([len(one) for one in probes], device=device).cumsum(0)
        self._edits = torch.cat(inside).repeat_interleave(columns).to(device)  # (probes,)
        self._measure: Measure = memory.settings["measure"]
        self._by_ratio = memory.settings["choose"] == "ratio"
        self._thresholds = memory.thresholds.to(device)[:, None]  # (shards, 1)
        self._temperatures = memory.temperatures.to(device)

    def reached(self, prompts: Prompts) -> Tensor:
        """Return what prompts reach of every shard, (shards, prompts)."""
        return self._reached(prompts, side_distance(prompts.flat, self.updates))[0]

    def matched(self, prompts: Prompts) -> Tensor:
        """Return how well prompts match each edit, by their best token, (edits, prompts); edits by shards."""
        distances = side_distance(prompts.flat, self.updates)  # (shards, prompts · tokens)
        each = self._ends.diff(prepend=self._ends.new_zeros(1)) // self._columns
        ends = torch.arange(1, len(self._edits) // self._columns + 1).to(self._ends) * self._columns
        own = distances.repeat_interleave(each, 0)  # (edits, prompts · tokens)
        best, _ = side_match(prompts.flat, self._probes, self._sizes, ends, own)
        shape = (len(best), *prompts.real.shape)
        return torch.where(prompts.real, best.reshape(shape), -torch.inf).amax(-1)

    @torch.no_grad()
    def find(self, prompts: Prompts) -> Found:
        """Return where prompts go."""
        distances = side_distance(prompts.flat, self.updates)  # (shards, prompts · tokens)
        found, edit = self._reached(prompts, distances)
        most = found.double()
        ratio = most / self._thresholds
        inside = ratio >= 1.0
        # Among those in scope the best one; the nearest to its threshold where none is.
        rank = ratio if self._by_ratio else torch.where(inside, most, ratio - 1.0)
        nearest = rank.argmax(0)  # (prompts,)
        every = torch.arange(len(nearest), device=nearest.device)
        over = ratio[nearest, every].clamp(min=_TINY).log() / self._temperatures[nearest]
        return Found(
            shard=torch.where(inside[nearest, every], nearest, OUTSIDE),
            probability=torch.sigmoid(over).float(),
            edit=edit[nearest, every],
        )

    def _reached(self, prompts: Prompts, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is reached, and the edit that is matched best, (shards, prompts) each."""
        best, place = side_match(
            prompts.flat, self._probes, self._sizes, self._ends, distances
        )  # (shards, prompts · tokens)
        shape, real = (len(best), *prompts.real.shape), prompts.real
        most, token = torch.where(real, best.reshape(shape), -torch.inf).max(-1)
        edit = self._edits[place.reshape(shape).gather(-1, token[..., None])[..., 0]]
        if self._measure == "match":
            return most, edit
        apart = torch.where(real, distances.reshape(shape), 0.0)
        if self._measure == "max":
            return apart.amax(-1), edit
        return apart.sum(-1) / real.sum(-1).clamp(min=1), edit


class ScopedRouter:
    """Finds the shard of prompts by the edit that a trained classifier says they meet.

    Attributes:
        updates: (shards, out_features, in_features) on the device of the projection.
    """

    def __init__(
        self, memory: SideMatrix, scoped: Scoped, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Keep what is needed of ``memory`` on a device, its updates in ``dtype``."""
        self.updates = updates_of(memory, device, dtype)
        self._classifier = scoped.classifier.to(device)
        self._directions = scoped.directions.to(device)  # (edits, width)
        self._shard = memory.shard.to(device)

    @torch.no_grad()
    def find(self, states: Tensor) -> Found:
        """Return where prompts go.

        Args:
            states: (prompts, features), as the classifier's reader gives them, read without the memory.
        """
        queries = self._classifier.embed(states.to(self._directions.device))
        match = self._classifier.match(queries, self._directions)
        shard = self._shard[match.edit.clamp(min=0)]
        return Found(
            shard=torch.where(match.edit == OUTSIDE, OUTSIDE, shard),
            probability=match.probability,
            edit=match.edit,
        )


def updates_of(memory: SideMatrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return what each shard adds, (shards, out_features, in_features)."""
    return torch.stack([one.update.matrix for one in memory.shards]).to(device, dtype)


def named(memory: SideMatrix, found: Found) -> Sequence[str | None]:
    """Return per prompt the id of the edit that it meets, or None.

    Args:
        memory: whose edits they are.
        found: where they go.
    """
    return [
        None if shard == OUTSIDE else memory.requests[edit].id
        for shard, edit in zip(found.shard.tolist(), found.edit.tolist(), strict=True)
    ]
