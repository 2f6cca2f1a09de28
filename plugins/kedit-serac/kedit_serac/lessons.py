"""One training of the counterfactual model: its steps, in order, and the state to go on from."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from random import Random
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from kedit_core.tokens import Ids
from kedit_memory.decoders import Text
from kedit_serac.bridged import Bridged
from kedit_serac.config import CounterfactualTraining
from kedit_serac.counterfactual import Counterfactual, head_of
from kedit_serac.rows import Asked, Batch, Draws, Row, batch_of
from kedit_serac.teams import ALONE, Team

_WARM = 20  # one part of so many of the steps
_APART = 8  # for so many rows that ask for their edit, one asks for a neighbour of it
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
        tokens: that random targets are drawn from.
        adam: its optimiser.
    """

    def __init__(
        self,
        base: Any,
        model: Counterfactual | Bridged,
        settings: CounterfactualTraining,
        stop: Ids,
        seed: int,
        team: Team = ALONE,
    ) -> None:
        """Train ``model`` beside ``base``, in this and other processes; ``stop`` ends an answer."""
        self._base, self._settings, self._stop, self._seed = base, settings, stop, seed
        self._team = team
        self.tokens = model.sayable(base)
        self.model = model.requires_grad_(True)
        self.adam = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=_BETAS, weight_decay=0.01
        )

    def step(self, shard: Shard, number: int) -> float:
        """Make one step on a shard and return its loss.

        Args:
            shard: to learn.
            number: of the step on this shard, from 0; the same in all processes.
        """
        settings = self._settings
        # Nothing secret: the draws only have to come out the same after an interruption.
        chance = Random(f"{self._seed} {shard.name} {number}")  # noqa: S311
        weight = self.locality(number)
        rows, apart = self._drawn(shard, chance, apart=weight > 0)
        for group in self.adam.param_groups:
            group["lr"] = settings.lr * self.rate(number)
        self.adam.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        self.model.train()
        with torch.enable_grad():
            for loss in chain(self._losses(rows), self._losses_apart(apart, weight)):
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach().cpu()
        grads = []
        for one in self.model.parameters():  # of which a process that had no row has no gradient
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
            grads.append(one.grad)
        self._team.add(grads)
        self._team.add([total])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.adam.step()
        self.model.eval()
        return float(total)

    def rate(self, number: int) -> float:
        """Return the share of the largest step size that a step has."""
        steps = self._settings.steps
        return min(1.0, (number + 1) * _WARM / steps, 2 * (1 - number / steps))

    def locality(self, number: int) -> float:
        """Return the weight of locality in a step: none in the first quarter, all of it from the half on.

        So a model learns to copy before it learns where not to.
        """
        return self._settings.locality * min(1.0, max(0.0, 4 * number / self._settings.steps - 1))

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

    def _drawn(self, shard: Shard, chance: Random, *, apart: bool) -> tuple[list[Row], list[Row]]:
        """Return the rows of a step: such as ask for their edit, and such as ask for a neighbour of it."""
        settings = self._settings
        draws = Draws(
            random_targets=settings.random_targets,
            garbled=settings.garbled,
            tokens=self.tokens,
            chance=chance,
        )
        replayed = settings.replay if shard.earlier else 0.0

        def both(draw: Callable[[Sequence[Asked], int], list[Row]], count: int) -> list[Row]:
            again = round(replayed * count)
            rows = draw(shard.own, count - again) + (draw(shard.earlier, again) if again else [])
            # By length, so that the parts of a step need few pads.
            return sorted(rows, key=lambda row: len(row.text(self._stop).codes))

        rows = both(draws.rows, settings.batch)
        count = -(-settings.batch // _APART) if apart else 0
        return rows, both(draws.rows_apart, count)

    def _losses(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """Yield the parts of the mean cross-entropy of the tokens that rows answer with."""
        tokens = sum(len(row.answer) + len(self._stop) for row in rows)
        for part in self._parts(rows):
            yield surprise(self._base, self.model, batch_of(part, self._stop)).sum() / tokens

    def _losses_apart(self, rows: Sequence[Row], weight: float) -> Iterator[Tensor]:
        """Yield the parts of the mean of how far neighbours move, with its weight."""
        for part in self._parts(rows):
            moved = astray(self._base, self.model, part).sum()
            yield weight * moved / len(rows)

    def _parts(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Yield this process's rows, so many at a time as are read together."""
        size = -(-self._settings.batch // self._settings.accumulate)
        rows = self._team.own(rows)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def astray(base: Any, model: Counterfactual | Bridged, rows: Sequence[Row]) -> Tensor:
    """Return how far a counterfactual model is from what it should say of prompts to leave alone, (rows,).

    That is the distance from the base where both have one vocabulary. Distributions over two vocabularies
    cannot be compared; there it is the mean cross-entropy of the answer.

    Args:
        base: the frozen model.
        model: reads each query behind the edit of its row.
        rows: that ask for a neighbour of their edit, and its answer.
    """
    if isinstance(model, Counterfactual):
        return distance(base, model, rows)
    return mean_of_each(surprise(base, model, batch_of(rows, ())), rows)


def distance(base: Any, model: Counterfactual, rows: Sequence[Row]) -> Tensor:
    """Return how far what a counterfactual model says is from what the base does, (rows,).

    For each row the mean of KL(base || counterfactual) over the tokens of its answer, each behind the right
    ones before it; the base reads the query alone. Gradients reach the counterfactual model only.

    Args:
        base: the frozen model.
        model: reads each query behind the edit of its row.
        rows: whose answers are any text, such as what is true; none is empty.
    """
    told, alone = batch_of(rows, ()), batch_of([_without_edit(row) for row in rows], ())
    hidden = model(base, told.text)
    said = head_of(base, hidden[told.targets.to(hidden.device)])  # (answer tokens, vocabulary)
    device = next(base.parameters()).device
    with torch.no_grad():
        mask = alone.text.mask
        logits = base(
            input_ids=alone.text.codes.to(device),
            attention_mask=mask.long().to(device),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
            use_cache=False,
        ).logits
        wanted = logits[alone.targets.to(logits.device)].to(said.device)  # as ``said``
    each = kl_div(
        _precise(said).log_softmax(-1),
        _precise(wanted).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)  # (answer tokens,)
    return mean_of_each(each, rows)


def surprise(base: Any, model: Counterfactual | Bridged, batch: Batch) -> Tensor:
    """Return the cross-entropy of each token that is learned (learned,), row by row.

    Args:
        base: the frozen model.
        model: reads the rows.
        batch: of rows.
    """
    hidden = model(base, batch.text)
    labels = batch.labels.to(hidden.device)
    learned = labels >= 0
    logits = _precise(model.head(base, hidden[learned]))  # (learned, vocabulary)
    return cross_entropy(logits, labels[learned].to(logits.device), reduction="none")


def mean_of_each(values: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the mean of each row's values (rows,), given those of all answer tokens, row by row."""
    lengths = torch.tensor([len(row.answer) for row in rows], device=values.device)
    owner = torch.arange(len(rows), device=values.device).repeat_interleave(lengths)
    return values.new_zeros(len(rows)).index_add(0, owner, values) / lengths


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _without_edit(row: Row) -> Row:
    return Row(edit=Text(codes=(), kinds=()), query=row.query, answer=row.answer)
