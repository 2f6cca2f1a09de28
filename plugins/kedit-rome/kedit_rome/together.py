"""Many restored single edits judged in one forward: every row of a batch meets its own edit.

Judged one by one, an edit W + v uᵀ is written, asked a few questions and taken out again. But

    (W + v uᵀ) x = W x + v (u·x)

so W can stay as it is: rows that belong to different edits share one forward, and a hook on the
projection adds to each row what its own edit would have added. In float32 and float64 that is the
written weight's answer up to rounding; a half-precision weight is rounded when it is written and
the sum here is not, so there close answers may differ.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit_core import Delta, LowRank, Weights
from kedit_core.errors import DeltaError
from kedit_core.outputs import first_tensor, replace_first
from kedit_core.scoring import Answered
from kedit_core.tokens import Ids
from kedit_core.untouched import untouched
from kedit_core.wrapped import inner_model
from kedit_locate.capture import behind_rows
from kedit_rome.kernels import per_row_rank_one


@frozen(kw_only=True)
class Asked:
    """What one edit is asked: prompt and answer as ids.

    Attributes:
        delta: place of the edit in the list of deltas, from 0.
        prompt: ids.
        answer: ids.
    """

    delta: int = field(validator=validators.ge(0))
    prompt: Ids = field(converter=tuple, validator=validators.min_len(1))
    answer: Ids = field(converter=tuple, validator=validators.min_len(1))

    @property
    def read(self) -> Ids:
        """Return what the model must read: the last token of an answer predicts nothing."""
        return (*self.prompt, *self.answer[:-1])


@torch.no_grad()
def score_together(
    model: nn.Module,
    deltas: Sequence[Delta],
    questions: Sequence[Asked],
    *,
    distributions: bool = False,
    tokens: int = 2048,
) -> list[Answered]:
    """Return, for each question, how the model would take the answer with that one delta in force.

    The model is only read; what is in force in it stays so.

    Args:
        model: the weight that the deltas edit must be as it was; other edits may be in force.
        deltas: each one rank-one update, all of one weight, as ROME computes them.
        questions: equal ones are asked once.
        distributions: keep the whole log-probabilities, for divergences.
        tokens: of a padded batch, at the most; a longer question goes alone.

    Raises:
        DeltaError: a delta is something else, or does not fit the model.
        IndexError: a question names a delta that is not there.
    """
    if not questions:
        return []
    last = max(question.delta for question in questions)
    if last >= len(deltas):
        raise IndexError(f"a question names delta {last}, and {len(deltas)} were given")
    model = inner_model(model)
    updates = _Updates.of(model, deltas)
    found: dict[Asked, Answered] = {}
    with untouched(model):
        for batch in _batches(dict.fromkeys(questions), tokens):
            with updates.added(model, [question.delta for question in batch]):
                answered = _ask(model, batch, distributions)
            found.update(zip(batch, answered, strict=True))
    return [found[question] for question in questions]


@frozen(kw_only=True)
class _Updates:
    """The rank-one updates of one weight.

    Attributes:
        path: of the module that holds it.
        left: (deltas, out_features).
        right: (deltas, in_features).
    """

    path: str
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, model: nn.Module, deltas: Sequence[Delta]) -> "_Updates":
        """Collect the updates; refuse what cannot be judged this way."""
        weights = Weights(model)
        parts = [_rank_one(delta) for delta in deltas]
        weight = parts[0].weight
        for delta, part in zip(deltas, parts, strict=True):
            if part.weight != weight:
                raise DeltaError(
                    f"delta {delta.id}", f"it edits {part.weight}, the first one edits {weight}"
                )
            weights.check(delta)
        path = weight.rpartition(".")[0]
        if not isinstance(model.get_submodule(path), nn.Linear | Conv1D):
            raise DeltaError(weight, "is no weight of a linear map")
        device = model.get_parameter(weight).device
        return cls(
            path=path,
            left=torch.stack([part.left[:, 0] for part in parts]).to(device),
            right=torch.stack([part.right[0] for part in parts]).to(device),
        )

    @contextmanager
    def added(self, model: nn.Module, rows: Sequence[int]) -> Iterator[None]:
        """Add to each row of a batch the update of its delta; ``rows`` says which, (rows,)."""
        of = torch.tensor(rows, device=self.left.device)
        u, v = self.right[of], self.left[of]  # (rows, in_features), (rows, out_features)

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
            y, x = first_tensor(output), args[0]
            # Some families flatten rows and tokens before the MLP.
            y_rows, x_rows = (one.reshape(len(rows), -1, one.shape[-1]) for one in (y, x))
            return replace_first(output, per_row_rank_one(y_rows, x_rows, u, v).reshape(y.shape))

        handle = model.get_submodule(self.path).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _rank_one(delta: Delta) -> LowRank:
    match delta.parts:
        case (LowRank(left=left) as part,) if left.shape[1] == 1:
            return part
    raise DeltaError(
        f"delta {delta.id}", "it is no single rank-one update, so it must be judged on its own"
    )


def _batches(questions: Iterable[Asked], tokens: int) -> Iterator[list[Asked]]:
    """Yield questions of like length together, so that padding is cheap."""
    batch: list[Asked] = []
    for question in sorted(questions, key=lambda question: len(question.read)):
        if batch and (len(batch) + 1) * len(question.read) > tokens:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def _ask(model: nn.Module, batch: Sequence[Asked], distributions: bool) -> list[Answered]:
    """Score one answer a row, all its tokens from one forward."""
    device = next(model.parameters()).device
    width = max(len(question.read) for question in batch)
    lengths = torch.tensor([len(question.read) for question in batch], device=device)
    padded = [[*question.read, *[0] * (width - len(question.read))] for question in batch]
    ids = torch.tensor(padded, device=device)  # (rows, tokens)
    positions = torch.arange(width, device=device)
    row, position = _answer_positions(batch)  # (targets,) each
    wanted, place = torch.unique(torch.tensor(position, device=device), return_inverse=True)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(
        input_ids=ids,
        attention_mask=behind_rows(model, (positions < lengths[:, None]).long()),
        position_ids=positions.expand_as(ids),
        use_cache=False,
        **({"logits_to_keep": wanted} if keeps else {}),
    ).logits
    said = logits[row, place if keeps else position]  # (targets, vocabulary)
    log_probs = torch.log_softmax(said.to(torch.promote_types(said.dtype, torch.float32)), dim=-1)
    return _per_question(batch, log_probs, distributions)


def _answer_positions(batch: Sequence[Asked]) -> tuple[list[int], list[int]]:
    """Return for every answer token of every question its row and where it is predicted."""
    row = [number for number, question in enumerate(batch) for _ in question.answer]
    position = [len(q.prompt) - 1 + place for q in batch for place in range(len(q.answer))]
    return row, position


def _per_question(batch: Sequence[Asked], log_probs: Tensor, distributions: bool) -> list[Answered]:
    """Split what was said, (targets, vocabulary), into what was said to each question."""
    answer = torch.tensor([one for question in batch for one in question.answer])  # (targets,)
    own = log_probs.gather(1, answer.to(log_probs.device)[:, None])[:, 0].cpu()
    top = log_probs.argmax(-1).cpu()
    sizes = [len(question.answer) for question in batch]
    split = [torch.split(one, sizes) for one in (own, top, answer)]
    kept = torch.split(log_probs.cpu(), sizes) if distributions else [None] * len(batch)
    return [
        Answered(log_probs=one, top=best, hits=best == right, distribution=whole)
        for one, best, right, whole in zip(*split, kept, strict=True)
    ]
