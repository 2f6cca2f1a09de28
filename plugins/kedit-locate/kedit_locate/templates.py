"""Context templates: what may stand before an edit's prompt."""

from typing import Any

import torch
from torch import Tensor, nn

from kedit_core import TensorCache, Weights
from kedit_core.digests import tokenizer_fingerprint
from kedit_locate.config import Context
from kedit_locate.sampling import sample, start_token

BARE = ""
"""The prefix of the prompt as it is; always the first."""


def context_prefixes(
    model: nn.Module,
    tokenizer: Any,
    context: Context,
    seed: int,
    weights: Weights,
    cache: TensorCache,
) -> tuple[str, ...]:
    """Return the texts to put before a prompt: the bare one first, then sentences the unedited model samples.

    Each sampled prefix ends in ". ", so ``prefix + prompt`` is the row's text. Lengths count the
    start token, as in ROME's code (arXiv:2202.05262). The same model, settings and seed give the
    same prefixes.

    Args:
        model: in ``eval`` mode; may be edited.
        tokenizer: the model's.
        context: how many and how long.
        seed: of the draw.
        weights: of the model.
        cache: where the sampled ids are kept.
    """
    if not context.count:
        return (BARE,)

    def make() -> dict[str, Tensor]:
        with weights.original():
            return _sampled(model, tokenizer, context, seed)

    key = {
        "model": weights.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "lengths": list(context.lengths),
        "count": context.count,
        "top_k": context.top_k,
        "seed": seed,
    }
    kept = cache.get("prefixes", key, make)
    rows = [row for place in range(len(context.lengths)) for row in kept[str(place)].tolist()]
    texts = (tokenizer.decode(row, skip_special_tokens=True) for row in rows)
    return (BARE, *(f"{_sentence(text)}. " for text in texts))


def _sampled(model: nn.Module, tokenizer: Any, context: Context, seed: int) -> dict[str, Tensor]:
    """Return the ids of the prefixes of each length, (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    start = torch.full((context.count, 1), start_token(tokenizer), device=device)
    return {
        str(place): sample(model, start, length - 1, generator, context.top_k).cpu()
        for place, length in enumerate(context.lengths)
    }


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
