"""What a model says after prompts: answers scored under teacher forcing, and continuations.

The prompt fills the KV cache, and each answer is scored from it. So a prompt with several answers
is read once, and a model that routes by its prompt is scored as it is used.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from kedit_core.reading import goes_on, reach_past_pads, takes
from kedit_core.tokens import check_context

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

    Raises:
        ValueError: a prompt or an answer holds no token.
        RequestError: a prompt with its answer is longer than the model's context.
    """
    if not all(prompt and answer for prompt, answer in pairs):
        raise ValueError("a prompt or an answer to score holds no token")
    check_context(
        model, max((len(prompt) + len(answer) - 1 for prompt, answer in pairs), default=0)
    )
    asked: dict[Ids, list[Ids]] = {}
    for prompt, answer in dict.fromkeys(pairs):
        asked.setdefault(prompt, []).append(answer)
    for own in asked.values():
        own.sort(key=len, reverse=True)  # answers of one token cost nothing: all of them come last
    found: dict[tuple[Ids, Ids], Answered] = {}
    for prompts, turns in _by_turns(asked):
        longest = max(len(asked[prompt][0]) for prompt in prompts)
        for batch in _batches(model, prompts, longest):
            prefilled = _prefill(model, batch)
            for turn in range(max(len(asked[prompt]) for prompt in batch)):
                rows = {row: asked[p][turn] for row, p in enumerate(batch) if turn < len(asked[p])}
                full = [rows.get(row, (0,)) for row in range(len(batch))]
                last = turn + 1 >= turns
                scored = _score(model, prefilled, full, last=last, keep=distributions)
                found |= {(batch[row], answer): scored[row] for row, answer in rows.items()}
    return [found[pair] for pair in pairs]


@torch.no_grad()
def continue_greedily(model: nn.Module, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
    """Return the ``tokens`` ids that greedy decoding adds to each prompt; end-of-text is not waited for."""
    return _continue(model, prompts, tokens, lambda logits, _: logits.argmax(-1))


@torch.no_grad()
def continue_sampling(
    model: nn.Module, prompts: Sequence[Ids], tokens: int, *, top: int, seed: int
) -> list[Ids]:
    """Return ``tokens`` ids that sampling from the ``top`` likeliest adds to each prompt.

    Every prompt meets the same seeded random numbers, whatever else is in the batch; no global
    random state is used. End-of-text is not waited for.
    """
    source = torch.Generator().manual_seed(seed)
    luck = torch.rand(tokens, generator=source, dtype=torch.float64)

    def choose(logits: Tensor, step: int) -> Tensor:
        best = logits.topk(min(top, logits.shape[-1]), dim=-1)  # (rows, top)
        reached = best.values.double().softmax(-1).cumsum(-1)
        place = (reached[:, :-1] <= luck[step].to(logits.device)).sum(-1, keepdim=True)
        return best.indices.gather(-1, place)[:, 0]

    return _continue(model, prompts, tokens, choose)


def _continue(
    model: nn.Module, prompts: Sequence[Ids], tokens: int, choose: Callable[[Tensor, int], Tensor]
) -> list[Ids]:
    """Add tokens to prompts; ``choose`` takes logits (rows, vocabulary) and the step, gives ids (rows,)."""
    if tokens < 1:
        return [() for _ in prompts]
    check_context(model, max(map(len, prompts), default=0) + tokens - 1)
    found: dict[Ids, Ids] = {}
    for batch in _batches(model, list(dict.fromkeys(prompts)), tokens):
        state = _prefill(model, batch)
        said = [choose(state.logits, 0)]  # (rows,) each
        for step in range(1, tokens):
            logits, state = _extend(model, state, said[-1][:, None], step - 1)
            said.append(choose(logits[:, -1], step))
        for prompt, row in zip(batch, torch.stack(said, 1).tolist(), strict=True):
            found[prompt] = tuple(row)
    return [found[prompt] for prompt in prompts]


def ends_of_text(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end what a model says."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return frozenset(one for one in (*listed, tokenizer.eos_token_id) if one is not None)


def up_to(ends: Collection[int], ids: Ids) -> list[int]:
    """Return the ids before the first that ends the text."""
    return list(takewhile(lambda one: one not in ends, ids))


@frozen(kw_only=True)
class _Prefilled:
    """Prompts in a KV cache, right-padded."""

    ids: Tensor  # (rows, tokens)
    lengths: Tensor  # (rows,)
    mask: Tensor  # (rows, tokens)
    logits: Tensor  # (rows, vocabulary) after the last token of each prompt
    cache: Any  # None of a model that cannot read on from one: it reads everything anew


def _by_turns(asked: Mapping[Ids, Sequence[Ids]]) -> Iterator[tuple[list[Ids], int]]:
    """Yield prompts together with how many answers of several tokens they have at the most.

    Every such answer is one more forward of a whole batch. So where one batch does not hold all
    prompts anyway, those with many aliases go into batches of their own.
    """
    turns = {prompt: sum(len(answer) > 1 for answer in own) for prompt, own in asked.items()}
    most = max(turns.values(), default=0)
    groups: dict[int, list[Ids]] = {}
    for prompt, count in turns.items():
        groups.setdefault(most if len(asked) <= _ROWS else count, []).append(prompt)
    for count, prompts in sorted(groups.items()):
        yield prompts, count


def _batches(model: nn.Module, prompts: Sequence[Ids], more: int) -> Iterator[list[Ids]]:
    """Yield prompts of like length together, so that padding is cheap.

    Args:
        model: that will read them.
        prompts: all of them.
        more: tokens, at the most, that will be read after a prompt.
    """
    reach = reach_past_pads(model)
    batch: list[Ids] = []
    for prompt in sorted(prompts, key=len):
        width = len(prompt)
        crowded = len(batch) == _ROWS or (len(batch) + 1) * width > _TOKENS
        if batch and (crowded or (width > len(batch[0]) and width + more > reach)):
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
    wanted = {"logits_to_keep": ends} if takes(model, "logits_to_keep") else {}
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **wanted
    )
    rows = torch.arange(len(prompts), device=ids.device)
    logits = output.logits[rows, place.to(rows.device) if wanted else lengths - 1]
    cache = getattr(output, "past_key_values", None)
    cache = cache if goes_on(cache) else None
    return _Prefilled(ids=ids, lengths=lengths, mask=mask, logits=logits, cache=cache)


def _extend(
    model: nn.Module, state: _Prefilled, ids: Tensor, offset: int = 0, *, last: bool = True
) -> tuple[Tensor, _Prefilled]:
    """Read ``ids`` (rows, tokens) after the prompts; return logits (rows, tokens, vocabulary) and state.

    With ``last`` the cache is used up, else it stays good for another answer.
    """
    cache = state.cache if last else copy.deepcopy(state.cache)
    mask = torch.cat([state.mask, torch.ones_like(ids)], dim=1)
    whole = torch.cat([state.ids, ids], dim=1)
    if cache is None:
        output = model(input_ids=whole, attention_mask=mask, use_cache=False)
    else:
        steps = torch.arange(ids.shape[1], device=ids.device)
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=state.lengths[:, None] + offset + steps,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
    return output.logits[:, -ids.shape[1] :], evolve(state, ids=whole, mask=mask, cache=cache)


def _score(
    model: nn.Module, state: _Prefilled, answers: Sequence[Ids], *, last: bool, keep: bool
) -> list[Answered]:
    """Score one answer per prompt."""
    ids, _ = _padded(answers, state.mask.device)  # (rows, tokens)
    logits = state.logits[:, None]
    if ids.shape[1] > 1:
        more, _ = _extend(model, state, ids[:, :-1], last=last)
        logits = torch.cat([logits, more], dim=1)  # (rows, tokens, vocabulary)
    top = logits.argmax(-1)  # as decoding does: the softmax may round two into a tie
    # In float32: a bfloat16 softmax cannot tell close answers apart.
    log_probs = torch.log_softmax(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1
    )
    own = log_probs.gather(-1, ids[..., None])[..., 0]  # (rows, tokens)
    return [
        Answered(
            log_probs=own[row, : len(answer)].cpu(),
            top=top[row, : len(answer)].cpu(),
            hits=(top[row, : len(answer)] == ids[row, : len(answer)]).cpu(),
            distribution=log_probs[row, : len(answer)].cpu() if keep else None,
        )
        for row, answer in enumerate(answers)
    ]
