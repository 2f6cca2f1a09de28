"""What a model says after prompts: answers scored under teacher forcing, and greedy continuations.

The prompt fills the KV cache, and each answer is scored from it. So a prompt with several answers
is read
once, and a model that routes by its prompt is scored as it is used.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

Ids = tuple[int, ...]

_ROWS = 64
_TOKENS = 2048  # of a padded batch


@frozen(kw_only=True)
class Answered:
    """How a model takes one answer after one prompt.

    Attributes:
        log_probs: (tokens,) of the answer's tokens, each given the ones before it.
        top: (tokens,) ids that the model would have said.
        hits: (tokens,) whether they are the answer's.
        distribution: (tokens, vocabulary) log-probabilities, when they were asked for.
    """

    log_probs: Tensor = field(eq=False)
    top: Tensor = field(eq=False)
    hits: Tensor = field(eq=False)
    distribution: Tensor | None = field(default=None, eq=False, repr=False)

    @property
    def exact(self) -> bool:
        """Tell whether greedy decoding says the answer."""
        return bool(self.hits.all())

    @property
    def nll(self) -> float:
        """Return the mean negative log-probability of the answer's tokens."""
        return -float(self.log_probs.mean())


@torch.no_grad()
def score_answers(
    model: nn.Module, pairs: Sequence[tuple[Ids, Ids]], *, distributions: bool = False
) -> list[Answered]:
    """Return, for each (prompt ids, answer ids), how the model takes the answer.

    Args:
        model: in ``eval`` mode.
        pairs: equal prompts are read once.
        distributions: keep the whole log-probabilities, for divergences.
    """
    answers: dict[Ids, dict[Ids, Answered]] = {prompt: {} for prompt, _ in pairs}
    for prompt, answer in pairs:
        answers[prompt][answer] = None  # type: ignore[assignment]
    for prompts in _batches(list(answers)):
        prefilled = _prefill(model, prompts)
        most = max(len(answers[prompt]) for prompt in prompts)
        for turn in range(most):
            rows = [row for row, prompt in enumerate(prompts) if turn < len(answers[prompt])]
            chosen = [list(answers[prompts[row]])[turn] for row in rows]
            full = [chosen[rows.index(row)] if row in rows else (0,) for row in range(len(prompts))]
            scored = _score(model, prefilled, full, last=turn == most - 1, keep=distributions)
            for row, answer in zip(rows, chosen, strict=True):
                answers[prompts[row]][answer] = scored[row]
    return [answers[prompt][answer] for prompt, answer in pairs]


@torch.no_grad()
def continue_greedily(model: nn.Module, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
    """Return the ``tokens`` ids that greedy decoding adds to each prompt; end-of-text is not waited for."""
    found: dict[Ids, Ids] = {}
    for batch in _batches(list(dict.fromkeys(prompts))):
        state = _prefill(model, batch)
        said = [state.logits.argmax(-1)]  # (rows,) each
        for step in range(tokens - 1):
            logits, state = _extend(model, state, said[-1][:, None], step)
            said.append(logits[:, -1].argmax(-1))
        for prompt, row in zip(batch, torch.stack(said, 1).tolist(), strict=True):
            found[prompt] = tuple(row)
    return [found[prompt] for prompt in prompts]


@frozen(kw_only=True)
class _Prefilled:
    """Prompts in a KV cache, right-padded."""

    lengths: Tensor  # (rows,)
    mask: Tensor  # (rows, tokens)
    logits: Tensor  # (rows, vocabulary) after the last token of each prompt
    cache: Any


def _batches(prompts: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Yield prompts of like length together, so that padding is cheap."""
    batch: list[Ids] = []
    for prompt in sorted(prompts, key=len):
        if batch and (len(batch) == _ROWS or (len(batch) + 1) * len(prompt) > _TOKENS):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask (rows, tokens), padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _prefill(model: nn.Module, prompts: Sequence[Ids]) -> _Prefilled:
    ids, mask = _padded(prompts, _device(model))
    lengths = mask.sum(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends, place = torch.unique(lengths - 1, return_inverse=True)
    wanted = (
        {"logits_to_keep": ends}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **wanted
    )
    rows = torch.arange(len(prompts), device=ids.device)
    logits = output.logits[rows, place.to(rows.device) if wanted else lengths - 1]
    return _Prefilled(lengths=lengths, mask=mask, logits=logits, cache=output.past_key_values)


def _extend(
    model: nn.Module, state: _Prefilled, ids: Tensor, offset: int = 0, *, last: bool = True
) -> tuple[Tensor, _Prefilled]:
    """Read ``ids`` (rows, tokens) after the prompts; return logits (rows, tokens, vocabulary) and state.

    With ``last`` the cache is used up, else it stays good for another answer.
    """
    cache = state.cache if last else copy.deepcopy(state.cache)
    mask = torch.cat([state.mask, torch.ones_like(ids)], dim=1)
    steps = torch.arange(ids.shape[1], device=ids.device)
    positions = state.lengths[:, None] + offset + steps
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    after = _Prefilled(
        lengths=state.lengths, mask=mask, logits=state.logits, cache=output.past_key_values
    )
    return output.logits, after


def _score(
    model: nn.Module, state: _Prefilled, answers: Sequence[Ids], *, last: bool, keep: bool
) -> list[Answered]:
    """Score one answer per prompt."""
    ids, _ = _padded(answers, state.mask.device)  # (rows, tokens)
    logits = state.logits[:, None]
    if ids.shape[1] > 1:
        more, _ = _extend(model, state, ids[:, :-1], last=last)
        logits = torch.cat([logits, more], dim=1)  # (rows, tokens, vocabulary)
    # In float32: a bfloat16 softmax cannot tell close answers apart.
    log_probs = torch.log_softmax(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1
    )
    own = log_probs.gather(-1, ids[..., None])[..., 0]  # (rows, tokens)
    top = log_probs.argmax(-1)
    return [
        Answered(
            log_probs=own[row, : len(answer)].cpu(),
            top=top[row, : len(answer)].cpu(),
            hits=(top[row, : len(answer)] == ids[row, : len(answer)]).cpu(),
            distribution=log_probs[row, : len(answer)].cpu() if keep else None,
        )
        for row, answer in enumerate(answers)
    ]
