"""One training of the counterfactual model: its steps, in order, and the state to go on from."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from kedit_core.tokens import Ids
from kedit_memory.decoders import padded
from kedit_serac.config import CounterfactualTraining
from kedit_serac.counterfactual import Counterfactual, edit_text, head_of
from kedit_serac.rows import Asked, Batch, Row, batch_of, drawn

_WARM = 20  # one part of so many of the steps
_CLIP = 1.0
_BETAS = (0.9, 0.98)


@frozen(kw_only=True)
class Shard:
    """Facts of one part of the training set, and those of the parts before it."""

    own: Sequence[Asked] = field(repr=False)
    earlier: Sequence[Asked] = field(repr=False)
    name: str


class Lessons:
    """Trains a counterfactual model, step by step; what a step does depends on its number alone.

    Attributes:
        model: in training.
        adam: its optimiser.
    """

    def __init__(
        self,
        base: Any,
        model: Counterfactual,
        settings: CounterfactualTraining,
        stop: Ids,
        seed: int,
    ) -> None:
        """Train ``model`` beside ``base``; ``stop`` ends an answer."""
        self._base, self._settings, self._stop, self._seed = base, settings, stop, seed
        self._vocabulary = int(base.get_output_embeddings().weight.shape[0])
        self.model = model.requires_grad_(True)
        self.adam = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=_BETAS, weight_decay=0.01
        )

    def step(self, shard: Shard, number: int) -> float:
        """Make one step on a shard and return its loss.

        Args:
            shard: to learn.
            number: of the step on this shard, from 0.
        """
        settings = self._settings
        # Nothing secret: the draws only have to come out the same after an interruption.
        chance = Random(f"{self._seed} {shard.name} {number}")  # noqa: S311
        # By length, so that the parts of a step need few pads.
        rows = sorted(self._rows(shard, chance), key=lambda row: len(row.text(self._stop).codes))
        for group in self.adam.param_groups:
            group["lr"] = settings.lr * self.rate(number)
        self.adam.zero_grad()
        total = 0.0
        self.model.train()
        with torch.enable_grad():
            for part in _parts(rows, settings.accumulate):
                loss = self._loss(batch_of(part, self._stop))
                if settings.locality:
                    loss = loss + settings.locality * self._distance(shard, part, chance)
                loss = loss * len(part) / len(rows)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.adam.step()
        self.model.eval()
        return total

    def rate(self, number: int) -> float:
        """Return the share of the largest step size that a step has."""
        steps = self._settings.steps
        return min(1.0, (number + 1) * _WARM / steps, 2 * (1 - number / steps))

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors by the names of their parameters."""
        names = [name for name, _ in self.model.named_parameters()]
        own = self.adam.state_dict()["state"]
        return {
            f"{names[place]}.{kind}": value if isinstance(value, Tensor) else torch.tensor(value)
            for place, kinds in own.items()
            for kind, value in kinds.items()
        }

    def go_on(self, state: dict[str, Tensor]) -> None:
        """Put the optimiser where :meth:`state` was taken."""
        found = self.adam.state_dict()
        found["state"] = {
            place: {
                key.removeprefix(f"{name}."): one.clone()
                for key, one in state.items()
                if key.removeprefix(f"{name}.") in ("step", "exp_avg", "exp_avg_sq")
            }
            for place, (name, _) in enumerate(self.model.named_parameters())
        }
        if state:
            self.adam.load_state_dict(found)

    def _rows(self, shard: Shard, chance: Random) -> list[Row]:
        settings = self._settings
        replayed = round(settings.replay * settings.batch) if shard.earlier else 0
        how = (settings.random_targets, self._vocabulary, chance)
        rows = drawn(shard.own, settings.batch - replayed, *how)
        return rows + (drawn(shard.earlier, replayed, *how) if replayed else [])

    def _loss(self, batch: Batch) -> Tensor:
        hidden = self.model(self._base, batch.text)
        labels = batch.labels.to(hidden.device)
        learned = labels >= 0
        logits = head_of(self._base, hidden[learned])
        return cross_entropy(logits.float(), labels[learned].to(logits.device))

    def _distance(self, shard: Shard, rows: Sequence[Row], chance: Random) -> Tensor:
        """Return the KL divergence from the base behind prompts that the stored edit says nothing of."""
        near = [one for fact in shard.own for one in fact.neighbours]
        if not near:
            return self.model.marks.sum() * 0.0
        queries = [chance.choice(near) for _ in rows[::4]]
        return distance(self._base, self.model, rows[::4], queries).mean()


def distance(
    base: Any, model: Counterfactual, rows: Sequence[Row], queries: Sequence[Ids]
) -> Tensor:
    """Return how far what a counterfactual model says after queries is from the base, (queries,).

    Args:
        base: the frozen model.
        model: reads each query behind the edit of a row.
        rows: one for each query.
        queries: prompts.
    """
    text = padded(
        [row.edit.then(query) for row, query in zip(rows, queries, strict=True)], left=True
    )
    said = head_of(base, model(base, text)[:, -1]).float().log_softmax(-1)
    alone = padded([edit_text((), ()).then(query) for query in queries], left=True)
    with torch.no_grad():
        # The marks of an edit that is not there are cut off again.
        ids, mask = alone.codes.clamp(min=0), alone.mask & (alone.codes >= 0)
        device = next(base.parameters()).device
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = base(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            position_ids=positions.to(device),
            use_cache=False,
        ).logits[:, -1]
    wanted = logits.float().log_softmax(-1).to(said.device)
    return kl_div(said, wanted, reduction="none", log_target=True).sum(-1)


def _parts(rows: Sequence[Row], number: int) -> Iterator[Sequence[Row]]:
    size = -(-len(rows) // number)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
