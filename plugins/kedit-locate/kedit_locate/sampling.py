"""Text that the model writes itself, seeded."""

from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.tokens import check_context


def start_token(tokenizer: Any) -> int:
    """Return the token that a text begins with: BOS, or else end-of-text, or else the first one."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


@torch.no_grad()
def sample(
    model: nn.Module,
    start: Tensor,
    tokens: int,
    generator: torch.Generator,
    top_k: int | None = None,
) -> Tensor:
    """Return ``start`` continued by ``tokens`` sampled tokens.

    The draw happens on the CPU, so that a seed means the same on every device.

    Args:
        model: in ``eval`` mode.
        start: (rows, tokens) ids.
        tokens: how many to add.
        generator: on the CPU.
        top_k: draw from this many likeliest tokens; None draws from all.
    """
    check_context(model, start.shape[1] + tokens)
    ids, fed, cache = start, start, None
    for _ in range(tokens):
        positions = torch.arange(ids.shape[1] - fed.shape[1], ids.shape[1], device=ids.device)
        output = model(
            input_ids=fed,
            attention_mask=torch.ones_like(ids),
            position_ids=positions.expand_as(fed),
            past_key_values=cache,
            use_cache=True,
        )
        cache = getattr(output, "past_key_values", None)
        logits = output.logits[:, -1].float().cpu()  # (rows, vocabulary)
        if top_k is not None:
            logits, choices = logits.topk(min(top_k, logits.shape[1]))
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)  # (rows, 1)
        if top_k is not None:
            drawn = choices.gather(1, drawn)
        ids = torch.cat([ids, drawn.to(ids.device)], dim=1)
        fed = ids if cache is None else ids[:, -1:]
    return ids
