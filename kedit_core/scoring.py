"""What a model says after prompts: answers scored under teacher forcing, and continuations.

The prompt fills the KV cache, and each answer is scored from it. So a prompt with several answers
is read once, and a model that routes by its prompt is scored as it is used.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.batches import ROWS, TOKENS, Text, batches, shelves
from kedit_core.contexts import Context, padded, read, read_on, score_on
from kedit_core.tokens import Ids, check_context


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
    model: nn.Module,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    distributions: bool = False,
    share: bool = False,
) -> list[Answered]:
    """Return, for each (prompt ids, answer ids), how the model takes the answer.

    Args:
        model: in ``eval`` mode.
        pairs: equal prompts are read once.
        distributions: keep the whole log-probabilities, for divergences.
        share: what many prompts begin with is read once too; not for a model that looks at its
            whole prompt before it answers, as routed memories do.

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

    def more(text: Text) -> int:
        return max(map(len, asked[text.ids])) - 1

    found: dict[tuple[Ids, Ids], Answered] = {}
    for shelf in shelves(model, list(asked), share=share):
        begun = read(model, shelf.stems) if shelf.stems else None
        for batch in batches(model, shelf.texts, more):
            context = _read(model, batch, begun)
            wanted = [
                _Wanted(row, answer) for row, text in enumerate(batch) for answer in asked[text.ids]
            ]
            for one, answered in _answered(model, context, wanted, keep=distributions):
                found[batch[one.row].ids, one.answer] = answered
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
    texts = [Text(ids=prompt) for prompt in dict.fromkeys(prompts)]
    for batch in batches(model, texts, lambda _: tokens):
        context = _read(model, batch, None)
        said = [choose(context.logits, 0)]  # (rows,) each
        for step in range(1, tokens):
            ids = said[-1][:, None]
            context = read_on(model, context, ids, torch.ones_like(ids))
            said.append(choose(context.logits, step))
        for text, row in zip(batch, torch.stack(said, 1).tolist(), strict=True):
            found[text.ids] = tuple(row)
    return [found[prompt] for prompt in prompts]


def ends_of_text(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end what a model says."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return frozenset(one for one in (*listed, tokenizer.eos_token_id) if one is not None)


def up_to(ends: Collection[int], ids: Ids) -> list[int]:
    """Return the ids before the first that ends the text."""
    return list(takewhile(lambda one: one not in ends, ids))


@frozen
class _Wanted:
    """An answer to be scored after the text in one row of a batch."""

    row: int
    answer: Ids


def _read(model: nn.Module, batch: Sequence[Text], begun: Context | None) -> Context:
    """Return the texts of a batch as the model has read them, on from their stems where there are any."""
    if begun is None:
        return read(model, [text.ids for text in batch])
    ids, mask = padded([text.rest for text in batch], begun.ids.device)
    return read_on(model, begun.begun([text.stem for text in batch]), ids, mask)


def _answered(
    model: nn.Module, context: Context, wanted: Sequence[_Wanted], *, keep: bool
) -> Iterator[tuple[_Wanted, Answered]]:
    """Yield how the model takes each answer; the context is used up."""
    first = _Next.of(context.logits)  # after the prompts
    longer = sorted((one for one in wanted if len(one.answer) > 1), key=lambda one: len(one.answer))
    rows = max(1, min(ROWS, TOKENS // context.ids.shape[1]))
    pieces = [longer[start : start + rows] for start in range(0, len(longer), rows)]
    yield from _taken([one for one in wanted if len(one.answer) == 1], first, None, keep=keep)
    for piece in pieces:
        own = context.rows([one.row for one in piece], last=piece is pieces[-1])
        ids, mask = padded([one.answer[:-1] for one in piece], context.ids.device)
        rest = _Next.of(score_on(model, own, ids, mask))  # after the answers' tokens
        yield from _taken(piece, first, rest, keep=keep)


@frozen(kw_only=True, eq=False)
class _Next:
    """What comes next: log-probabilities (…, vocabulary) and the likeliest ids (…)."""

    log_probs: Tensor
    top: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "_Next":
        """Return what logits (…, vocabulary) say."""
        top = logits.argmax(-1)  # as decoding does: the softmax may round two into a tie
        # In float32: a bfloat16 softmax cannot tell close answers apart.
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cls(log_probs=torch.log_softmax(exact, dim=-1), top=top)


def _taken(
    wanted: Sequence[_Wanted], first: _Next, rest: _Next | None, *, keep: bool
) -> Iterator[tuple[_Wanted, Answered]]:
    """Yield how each answer is taken.

    Args:
        wanted: the answers, all of one token if there is no ``rest``.
        first: what comes next after the prompts, (rows, …).
        rest: what comes next after the answers' own tokens, (answers, tokens, …).
        keep: the distributions.
    """
    if not wanted:
        return
    rows = torch.tensor([one.row for one in wanted], device=first.top.device)
    ids, _ = padded([one.answer for one in wanted], first.top.device)  # (answers, tokens)
    own = first.log_probs[rows, ids[:, 0]][:, None]
    top = first.top[rows][:, None]
    if rest is not None:
        more = rest.log_probs.gather(-1, ids[:, 1:, None])[..., 0]
        own, top = torch.cat([own, more], dim=1), torch.cat([top, rest.top], dim=1)
    own, top, hits = own.cpu(), top.cpu(), (top == ids).cpu()  # (answers, tokens)
    for place, one in enumerate(wanted):
        count = len(one.answer)
        whole = first.log_probs[one.row][None]
        if rest is not None:
            whole = torch.cat([whole, rest.log_probs[place, : count - 1]])
        yield (
            one,
            Answered(
                log_probs=own[place, :count],
                top=top[place, :count],
                hits=hits[place, :count],
                distribution=whole.cpu() if keep else None,
            ),
        )
