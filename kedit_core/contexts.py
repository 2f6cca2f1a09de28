"""Texts that a model has read, side by side in a KV cache, and reading on from there.

Shorter texts are padded on the right. The mask and the positions say which tokens are real, so that
what comes next may follow pads.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from kedit_core.reading import goes_on, takes
from kedit_core.tokens import Ids


@frozen(kw_only=True, eq=False)
class Context:
    """Texts that a model has read.

    Attributes:
        ids: (rows, tokens), pads among them.
        mask: (rows, tokens), 1 at what is no pad.
        logits: (rows, vocabulary) after the last token of each text.
        cache: None of a model that cannot read on from one; it reads everything anew.
    """

    ids: Tensor
    mask: Tensor
    logits: Tensor
    cache: Any

    def rows(self, places: Sequence[int], *, last: bool) -> "Context":
        """Return the texts at some places, in that order, any of them as often as wanted.

        Args:
            places: of rows.
            last: this context is used up by it; else it stays good for other rows.
        """
        rows = torch.tensor(places, device=self.ids.device)
        cache = self.cache if last else copy.deepcopy(self.cache)
        if cache is not None and list(places) != list(range(len(self.ids))):
            cache.batch_select_indices(rows)
        return Context(
            ids=self.ids[rows], mask=self.mask[rows], logits=self.logits[rows], cache=cache
        )

    def begun(self, places: Sequence[int]) -> "Context":
        """Return what :meth:`rows` does, copying no other rows, of a cache that holds keys and values alone."""
        if self.cache is None:
            return self.rows(places, last=False)
        rows = torch.tensor(places, device=self.ids.device)
        cache = DynamicCache()
        for place, layer in enumerate(self.cache.layers):
            own = rows.to(layer.keys.device)
            cache.update(layer.keys[own], layer.values[own], place)
        return Context(
            ids=self.ids[rows], mask=self.mask[rows], logits=self.logits[rows], cache=cache
        )


def padded(texts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask (rows, tokens), padded on the right."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
    mask = torch.tensor(
        [[1] * len(text) + [0] * (width - len(text)) for text in texts], device=device
    )
    return ids, mask


def read(model: nn.Module, texts: Sequence[Ids]) -> Context:
    """Return texts as the model has read them."""
    ids, mask = padded(texts, next(model.parameters()).device)
    output, logits = _forward(
        model, mask, input_ids=ids, attention_mask=mask, position_ids=_places(mask), use_cache=True
    )
    cache = getattr(output, "past_key_values", None)
    return Context(ids=ids, mask=mask, logits=logits, cache=cache if goes_on(cache) else None)


def read_on(model: nn.Module, context: Context, ids: Tensor, mask: Tensor) -> Context:
    """Return a context with more behind each text; the old one is used up.

    Args:
        model: that read it.
        context: what it read.
        ids: (rows, tokens), padded on the right.
        mask: (rows, tokens), 1 at what is no pad.
    """
    seen = torch.cat([context.mask, mask], dim=1)
    output, logits = _forward(model, mask, **_following(model, context, ids, seen, _places(seen)))
    cache = None if context.cache is None else output.past_key_values
    whole = torch.cat([context.ids, ids], dim=1)
    return Context(ids=whole, mask=seen, logits=logits, cache=cache)


def score_on(model: nn.Module, context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) at more behind each text; the context is used up.

    Args:
        model: that read it.
        context: what it read.
        ids: (rows, tokens), padded on the right.
        mask: (rows, tokens), 1 at what is no pad.
    """
    places = _places(torch.cat([context.mask, mask], dim=1))
    # Nothing follows these pads, so none is masked: one that sees nothing, not even itself, is not a number.
    seen = torch.cat([context.mask, torch.ones_like(mask)], dim=1)
    logits: Tensor = model(**_following(model, context, ids, seen, places)).logits
    return logits[:, -ids.shape[1] :]


def _following(
    model: nn.Module, context: Context, ids: Tensor, seen: Tensor, places: Tensor
) -> dict[str, Any]:
    """Return the arguments of a forward that reads ``ids`` (rows, tokens) behind a context.

    Args:
        model: to call.
        context: what it read.
        ids: what it shall read.
        seen: (rows, all tokens) the mask.
        places: (rows, all tokens) the positions.
    """
    if context.cache is None:
        whole = torch.cat([context.ids, ids], dim=1)
        told = {"position_ids": places} if takes(model, "position_ids") else {}
        return {"input_ids": whole, "attention_mask": seen, "use_cache": False, **told}
    return {
        "input_ids": ids,
        "attention_mask": seen,
        "position_ids": places[:, -ids.shape[1] :],
        "past_key_values": context.cache,
        "use_cache": True,
    }


def _places(mask: Tensor) -> Tensor:
    """Return the positions of tokens, (rows, tokens); a pad stands where the token before it does."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _forward(model: nn.Module, mask: Tensor, **given: Any) -> tuple[Any, Tensor]:
    """Return what a model puts out, and the logits (rows, vocabulary) after each row's last token.

    Args:
        model: to call.
        mask: (rows, tokens) of the tokens that are new.
        given: to the model.
    """
    last = mask.sum(1) - 1  # (rows,)
    rows = torch.arange(len(mask), device=mask.device)
    if takes(model, "logits_to_keep"):
        before = given["input_ids"].shape[1] - mask.shape[1]
        ends, place = torch.unique(last + before, return_inverse=True)
        output = model(**given, logits_to_keep=ends)
        return output, output.logits[rows, place]
    output = model(**given)
    return output, output.logits[:, -mask.shape[1] :][rows, last]
