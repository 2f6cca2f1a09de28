"""A shard that is trained, as the original does it (Wang et al., 2024, arXiv:2405.14768, eq. 4 to 6).

The entries under the shard's mask go down the gradient of

    mean NLL(target | lines of the edit)  +  [D_out - D_in + γ]₊ + [D_out - α]₊ + [β - D_in]₊

where D_in is the distance between side and main output on an edit's own prompts and D_out that on texts out
of scope, means over the tokens that routing would see. Everything that a step does is under the mask: gradient,
decay and bound. The edits of a batch train together, each with the step that it would take alone.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kedit_core import EditRequest, Weights
from kedit_core.progress import Progress
from kedit_locate.capture import replaced_output
from kedit_locate.layers import site_of
from kedit_locate.suffix import run
from kedit_wise.config import Descent
from kedit_wise.irrelevant import Texts
from kedit_wise.lessons import Lesson, Part, lesson_of, lines_of
from kedit_wise.masks import drawn
from kedit_wise.updates import masked
from kedit_wise.writing import Held, Written

_SETTLED = 1e-4  # two losses that differ by less are one


@frozen(kw_only=True)
class Aside:
    """Texts out of scope, as many for each edit.

    Attributes:
        inputs: (edits · texts, tokens, in_features) of the projection.
        real: (edits · texts, tokens) bool.
    """

    inputs: Tensor = field(repr=False)
    real: Tensor = field(repr=False)


class Trainer:
    """Writes edits into shards beside one projection."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        settings: Descent,
        layer: int,
        prefixes: Sequence[str],
        weights: Weights,
        progress: Progress,
        texts: Texts,
        seed: int,
    ) -> None:
        """Take what all shards have in common: their projection, texts before prompts and out of scope."""
        self._down, self._site = weights.layout.down_of(layer), site_of(weights.layout, layer)
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._prefixes, self._texts, self._seed = prefixes, texts, seed
        self._weights, self._progress = weights, progress

    def write(
        self, requests: Sequence[EditRequest], held: Held, notes: Mapping[str, Any], *, chat: bool
    ) -> Written:
        """Return a shard with more edits in it, as ``Writer`` says."""
        del notes
        trained = [*requests, *self._again(requests, held)]
        lines = [lines_of(self._tokenizer, one, self._prefixes, chat=chat) for one in trained]
        lesson = lesson_of(self._model, lines, self._down, self._site)
        aside = self._aside(trained, held, lesson)
        base = self._weights.matrix(self._down.weight)  # (out_features, in_features)
        shape = (self._down.out_features, self._down.in_features)
        own = self._settings
        mask = drawn(shape, own.mask, held.drawn, self._seed, disjoint=own.masks == "disjoint")
        start = torch.zeros(shape) if held.update is None else held.update.matrix
        start = start.to(lesson.inputs)
        mask = None if mask is None else mask.to(start.device)
        descent = _Descent(self._model, self._site, lesson, aside, own)
        update, losses = descent.run(start, base.to(start), mask, self._progress)
        return Written(
            update=masked(update, mask),
            keys=_last_inputs(lesson, len(requests)).cpu(),
            notes={"loss": losses, **({"search": lesson.refusal} if lesson.refusal else {})},
        )

    def _again(self, requests: Sequence[EditRequest], held: Held) -> list[EditRequest]:
        """Return earlier edits of the shard that train along, seeded by the new ones."""
        chance = Random(f"replay {self._seed} {requests[0].id}")  # noqa: S311
        count = min(self._settings.replay, len(held.requests))
        return chance.sample(list(held.requests), count)

    def _aside(self, trained: Sequence[EditRequest], held: Held, lesson: Lesson) -> Aside:
        places = self._texts.apart_from([*trained, *held.requests]).tolist()
        if not places:  # every text names some subject of the shard: better those than none
            places = list(range(len(self._texts.words)))
        chosen: list[int] = []
        for one in trained:
            chance = Random(f"irrelevant {self._seed} {one.id}")  # noqa: S311
            chosen += chance.choices(places, k=self._settings.irrelevant)
        return Aside(
            inputs=self._texts.read.inputs[chosen].to(lesson.inputs),
            real=self._texts.read.real[chosen].to(lesson.inputs.device),
        )


def _last_inputs(lesson: Lesson, edits: int) -> Tensor:
    """Return the inputs at the last token of the first edits' bare prompts, (edits, 1, in_features)."""
    bare = torch.arange(edits, device=lesson.inputs.device) * lesson.each
    return lesson.inputs[bare, lesson.prompts[bare].sum(1) - 1][:, None]


class _Descent:
    """The training of one shard on one lesson."""

    def __init__(
        self,
        model: nn.Module,
        site: str,
        lesson: Lesson,
        aside: Aside,
        settings: Descent,
    ) -> None:
        self._model, self._site, self._lesson, self._aside = model, site, lesson, aside
        self._settings = settings

    def run(
        self, start: Tensor, base: Tensor, mask: Tensor | None, progress: Progress
    ) -> tuple[Tensor, list[float]]:
        """Return the update (out_features, in_features) and the loss before every step.

        Args:
            start: the update so far, zero outside the mask.
            base: the weights that it is added to.
            mask: which entries may change; None for all.
            progress: told of each step.
        """
        own, update = self._settings, start.clone().requires_grad_()
        kind = torch.optim.SGD if own.optimiser == "sgd" else torch.optim.Adam
        optimiser = kind([update], lr=own.lr)
        losses: list[float] = []
        with progress.task("training the side", own.steps, "steps") as done:
            for _ in range(own.steps):
                loss, gradient = self._loss(update)
                losses.append(loss / self._lesson.edits)
                settled = len(losses) > 1 and abs(losses[-1] - losses[-2]) <= _SETTLED
                if settled and losses[-1] <= own.stop:
                    break
                with torch.no_grad():
                    gradient += own.decay * (base + update)
                    update.grad = gradient if mask is None else gradient * mask
                    optimiser.step()
                    if own.clamp is not None:
                        update.clamp_(-own.clamp, own.clamp)
                    if mask is not None:
                        update *= mask
                done(1)
        return update.detach(), losses

    @torch.enable_grad()
    def _loss(self, update: Tensor) -> tuple[float, Tensor]:
        """Return the loss, summed over edits, and its gradient (out_features, in_features)."""
        loss = self._margins(update)
        (gradient,) = torch.autograd.grad(loss, update)
        total = float(loss.detach())
        for part in self._lesson.parts:  # one graph at a time
            loss = self._saying(part, update)
            gradient = gradient + torch.autograd.grad(loss, update)[0]
            total += float(loss.detach())
        return total, gradient

    def _saying(self, part: Part, update: Tensor) -> Tensor:
        """Return what a part adds to the mean NLL of each edit's target, summed over edits."""
        shape = part.suffix.ids.shape
        shift = (
            self._lesson.inputs[part.lines, : shape[1]] @ update.T
        )  # (lines, tokens, out_features)

        def moved(hidden: Tensor) -> Tensor:
            return hidden + shift.to(hidden.dtype).reshape(hidden.shape)

        with replaced_output(self._model, self._site, moved):
            logits = run(self._model, part.suffix, part.row, part.place)  # (targets, vocabulary)
        nll = cross_entropy(logits, part.target, reduction="none")
        return (nll * part.share.to(nll.dtype)).sum()

    def _margins(self, update: Tensor) -> Tensor:
        """Return the three margins of every edit, summed over edits."""
        own, edits = self._settings, self._lesson.edits
        inside = self._distance(self._lesson.inputs, self._lesson.prompts, update)
        inside = inside.reshape(edits, -1)  # (edits, lines)
        outside = self._distance(self._aside.inputs, self._aside.real, update).reshape(edits, -1)
        between = outside[:, :, None] - inside[:, None, :] + own.margin
        terms = [_mean_above(between.flatten(1)), _mean_above(outside - own.quiet)]
        return torch.stack([*terms, _mean_above(own.loud - inside)]).sum()

    def _distance(self, inputs: Tensor, real: Tensor, update: Tensor) -> Tensor:
        by_token = torch.linalg.vector_norm(inputs @ update.T, dim=-1)  # (lines, tokens)
        return torch.where(real, by_token, 0.0).sum(1) / real.sum(1)


def _mean_above(values: Tensor) -> Tensor:
    """Return the mean of each row's positive entries, 0 where it has none, (rows,)."""
    above = values > 0
    return torch.where(above, values, 0.0).sum(1) / above.sum(1).clamp(min=1)
