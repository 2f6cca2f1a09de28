"""What stands before the rows of a forward, read into a cache of keys and values.

Behind the same sampled text, and on the same template, the prompts of many edits begin alike. What rows share
is read once and handed to each of them; only the rest is read row by row.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.reading import goes_on, reach_past_pads
from kedit_locate.picking import head_reads
from kedit_locate.rows import padded

_SHARING = (32, 8, 2)
"""Beginnings count as shared by at least so many rows; the number that leaves least to read is taken."""

_FORWARD = 48
"""A forward of its own for what rows share pays when it saves more tokens than this."""

Ids = Sequence[int]


@frozen(kw_only=True)
class Prefixes:
    """What stands before rows.

    Attributes:
        cache: its keys and values.
        mask: (rows, tokens) of them, pads anywhere.
    """

    cache: Any
    mask: Tensor


@torch.no_grad()
def read_prefixes(model: nn.Module, rows: Sequence[Ids], more: int) -> Prefixes | None:
    """Return what stands before rows; None where it is nothing, or where a model cannot read on from it.

    Args:
        model: in ``eval`` mode.
        rows: ids of each row's prefix, maybe none.
        more: tokens, at the most, that will be read after a prefix.
    """
    longest = max(map(len, rows))
    if not longest:
        return None
    cut = _cuts(rows)
    heads = [tuple(row[:at]) for row, at in zip(rows, cut, strict=True)]
    rest = [row[at:] for row, at in zip(rows, cut, strict=True)]
    width = max(cut) + max(map(len, rest)) + more
    if not any(cut) or width > reach_past_pads(model):
        ids, mask = padded(rows, next(model.parameters()).device)
        cache = _read(model, ids, ids.new_zeros(len(ids)), None, None)
        return Prefixes(cache=cache, mask=mask) if _good(cache) else None
    return _read_shared(model, heads, rest)


def _cuts(rows: Sequence[Ids]) -> list[int]:
    """Return how many tokens of each row are read with other rows; 0 of all where that saves little."""
    nothing = [0 for _ in rows]
    least, found = len(rows) * max(map(len, rows)), nothing
    begun = Counter(tuple(row[:at]) for row in rows for at in range(1, len(row) + 1))
    for sharing in _SHARING:
        cut = [
            max(
                (at for at in range(1, len(row) + 1) if begun[tuple(row[:at])] >= sharing),
                default=0,
            )
            for row in rows
        ]
        heads = {tuple(row[:at]) for row, at in zip(rows, cut, strict=True)}
        rest = max(len(row) - at for row, at in zip(rows, cut, strict=True))
        cost = len(heads) * max(cut) + len(rows) * rest + _FORWARD
        if cost < least:
            least, found = cost, cut
    return found


def _read_shared(model: nn.Module, heads: Sequence[Ids], rest: Sequence[Ids]) -> Prefixes | None:
    """Read every different head once, and the rest of each row behind it."""
    device = next(model.parameters()).device
    different = list(dict.fromkeys(heads))
    ids, mask = padded(different, device)
    cache = _read(model, ids, ids.new_zeros(len(ids)), None, None)
    if not _good(cache):
        return None
    places = {head: place for place, head in enumerate(different)}
    own = torch.tensor([places[head] for head in heads], device=device)  # (rows,)
    cache, mask = _handed(cache, own), mask[own]
    ids, behind = padded(rest, device)
    if ids.shape[1]:
        cache = _read(
            model, ids, mask.sum(1), cache, torch.cat([mask, torch.ones_like(ids)], dim=1)
        )
    return Prefixes(cache=cache, mask=torch.cat([mask, behind], dim=1))


def _read(model: nn.Module, ids: Tensor, first: Tensor, cache: Any, mask: Tensor | None) -> Any:
    """Return the cache after some more ids (rows, tokens), whose places begin at ``first`` (rows,).

    Pads behind them are masked later, and by causality change nothing.
    """
    nothing = ids.new_zeros(0)
    with head_reads(model, ids.shape, nothing, nothing):
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids) if mask is None else mask,
            position_ids=first[:, None] + torch.arange(ids.shape[1], device=ids.device),
            past_key_values=cache,
            use_cache=True,
        )
    return getattr(output, "past_key_values", None)


def _good(cache: Any) -> bool:
    return hasattr(cache, "layers") and goes_on(cache)


def _handed(cache: Any, own: Tensor) -> Any:
    """Return a cache in which every row has the keys and values of some row of another."""
    handed = copy.copy(cache)
    handed.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in handed.layers:
        layer.keys, layer.values = layer.keys[own], layer.values[own]
    return handed
