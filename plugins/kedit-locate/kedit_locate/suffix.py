"""Rows of edits from the subject's last token on: what stands before it is read once.

Nothing before the place where a shift is added ever changes, so it goes into a KV cache, and a forward
runs from that place on. Rows of different lengths share a forward with pads between prefix and suffix.
Models for which those pads would not be nothing (a sliding window counts them as places, ALiBi without
positions as distance, a recurrent state takes them in) read rows of one length at a time. What a recurrent
state holds is written over as a model reads on, so there is nothing to start from again: such models read
their rows whole.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.reading import goes_on, reach_past_pads, takes
from kedit_locate.capture import behind_rows
from kedit_locate.rows import EditRows, Row, padded


@frozen(kw_only=True)
class Suffix:
    """Rows from their lookup token on, and the cache of what stands before it; or whole rows.

    Attributes:
        ids: (rows, tokens).
        at: position of the lookup token in them: the first, but in whole rows.
        mask: (rows, prefix tokens + tokens).
        positions: (rows, tokens).
        cache: KV of the prefixes, or None when there is none.
        edit: (rows,) which edit a row belongs to.
        bare: (bare prompts,) rows that are the bare prompt of an edit.
        bare_of: (bare prompts,) which edit each belongs to.
        anchors: (anchors,) rows that are the anchor of an edit.
        anchor_of: (anchors,) which edit each belongs to.
        wanted: (positions,) positions whose logits are needed, ascending; the lookup token's is the
            first.
        row: (targets,) row of each target token.
        place: (targets,) where it is predicted, within ``wanted``.
        target: (targets,) its id.
        share: (targets,) weight of its NLL in its edit's loss.
    """

    ids: Tensor
    at: int
    mask: Tensor
    positions: Tensor
    cache: Any
    edit: Tensor
    bare: Tensor
    bare_of: tuple[int, ...]
    anchors: Tensor
    anchor_of: tuple[int, ...]
    wanted: Tensor
    row: Tensor
    place: Tensor
    target: Tensor
    share: Tensor


@frozen(kw_only=True)
class _Weighed:
    """One row of one edit.

    Attributes:
        row: the row.
        edit: which edit it belongs to.
        share: of the edit's loss that its target makes up.
        bare: it is the edit's bare prompt.
        anchor: it is the edit's anchor.
    """

    row: Row
    edit: int
    share: float
    bare: bool = False
    anchor: bool = False


@torch.no_grad()
def read_prefixes(model: nn.Module, edits: Sequence[EditRows]) -> list[Suffix]:
    """Return the suffixes of all rows: together, or one for each length of prefix where pads do harm.

    Args:
        model: in ``eval`` mode.
        edits: rows of each edit.
    """
    rows = [row for number, edit in enumerate(edits) for row in _weighed(number, edit)]
    lookups = {one.row.lookup for one in rows}
    longest = max(lookups) + max(len(one.row.ids) - one.row.lookup for one in rows)
    if longest <= reach_past_pads(model):
        return _read(model, rows)
    return _read_apart(model, rows)


def run(model: nn.Module, suffix: Suffix) -> Tensor:
    """Run the suffixes and return the wanted logits, (rows, wanted, vocabulary) in float32 or more.

    Args:
        model: in ``eval`` mode.
        suffix: stays good for another run.
    """
    options = _keeping(model, suffix.wanted)
    output = model(
        input_ids=suffix.ids,
        attention_mask=suffix.mask,
        position_ids=suffix.positions,
        past_key_values=_borrowed(suffix.cache),
        use_cache=suffix.cache is not None,
        **options,
    )
    logits: Tensor = output.logits if options else output.logits[:, suffix.wanted]
    return logits.to(exact(logits.dtype))


def exact(dtype: torch.dtype) -> torch.dtype:
    """Return what losses and shifts are kept in: float32, or float64 in a float64 model.

    Args:
        dtype: of the model.
    """
    return torch.promote_types(dtype, torch.float32)


def _weighed(number: int, edit: EditRows) -> list[_Weighed]:
    """Return each different row once with its share of the edit's loss, the anchor last with none.

    A model that repeats itself gives equal prefixes; reading them once is the same sum.
    """
    counts = Counter(edit.rewrites)
    found = [
        _Weighed(row=row, edit=number, share=count / len(edit.rewrites), bare=not place)
        for place, (row, count) in enumerate(counts.items())
    ]
    return [*found, _Weighed(row=edit.anchor, edit=number, share=0.0, anchor=True)]


def _read_apart(model: nn.Module, weighed: Sequence[_Weighed]) -> list[Suffix]:
    lookups = sorted({one.row.lookup for one in weighed})
    groups = [[one for one in weighed if one.row.lookup == lookup] for lookup in lookups]
    return [suffix for group in groups for suffix in _read(model, group)]


def _read(model: nn.Module, weighed: Sequence[_Weighed]) -> list[Suffix]:
    device = next(model.parameters()).device
    rows = [one.row for one in weighed]
    cache, starts = _prefixes(model, rows, device)
    at, *others = {row.lookup - start for row, start in zip(rows, starts, strict=True)}
    if others:  # whole rows: a shift has one place in a forward
        return _read_apart(model, weighed)
    alike = len(set(starts)) == 1  # so that all pads are behind the rows
    before = [row.ids[:start] for row, start in zip(rows, starts, strict=True)]
    after = [row.ids[start:] for row, start in zip(rows, starts, strict=True)]
    (_, before_mask), (ids, mask) = padded(before, device), padded(after, device)
    whole_mask = torch.cat([before_mask, mask], dim=1)
    row_of, place, target, share = _targets(weighed, at)
    wanted = sorted({*place, at})
    bare = [number for number, one in enumerate(weighed) if one.bare]
    anchors = [number for number, one in enumerate(weighed) if one.anchor]

    def numbers(found: Sequence[int]) -> Tensor:
        return torch.tensor(found, device=device, dtype=torch.long)

    suffix = Suffix(
        ids=ids,
        at=at,
        mask=behind_rows(model, whole_mask) if alike else whole_mask,
        positions=numbers(starts)[:, None] + torch.arange(ids.shape[1], device=device),
        cache=cache,
        edit=numbers([one.edit for one in weighed]),
        bare=numbers(bare),
        bare_of=tuple(weighed[number].edit for number in bare),
        anchors=numbers(anchors),
        anchor_of=tuple(weighed[number].edit for number in anchors),
        wanted=numbers(wanted),
        row=numbers(row_of),
        place=numbers([wanted.index(one) for one in place]),
        target=numbers(target),
        share=torch.tensor(share, dtype=exact(next(model.parameters()).dtype), device=device),
    )
    return [suffix]


def _targets(
    weighed: Sequence[_Weighed], at: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Return for every target token its row, its position in the suffix, its id and its share of the loss."""
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    for number, one in enumerate(weighed):
        row = one.row
        first = at + len(row.ids) - len(row.target) - row.lookup
        rows += [number] * len(row.target)
        places += range(first, first + len(row.target))
        targets += row.target
        shares += [one.share / max(len(row.target), 1)] * len(row.target)
    return rows, places, targets, shares


def _prefixes(model: nn.Module, rows: Sequence[Row], device: torch.device) -> tuple[Any, list[int]]:
    """Return the KV cache of right-padded prefixes, and how many tokens of each row are in it.

    Pads are masked later, and by causality change nothing.
    """
    prefix_ids, _ = padded([row.ids[: row.lookup] for row in rows], device)
    lookups = [row.lookup for row in rows]
    if prefix_ids.shape[1] == 0:
        return None, lookups
    positions = torch.arange(prefix_ids.shape[1], device=prefix_ids.device).expand_as(prefix_ids)
    options = _keeping(model, torch.zeros(1, dtype=torch.long, device=prefix_ids.device))
    output = model(
        input_ids=prefix_ids,
        attention_mask=torch.ones_like(prefix_ids),
        position_ids=positions,
        use_cache=True,
        **options,
    )
    cache = getattr(output, "past_key_values", None)
    return (cache, lookups) if goes_on(cache) else (None, [0 for _ in rows])


def _keeping(model: nn.Module, wanted: Tensor) -> dict[str, Tensor]:
    """Return the argument that limits logits to some positions, for models that know it."""
    return {"logits_to_keep": wanted} if takes(model, "logits_to_keep") else {}


def _borrowed(cache: Any) -> Any:
    """Return a cache that can be written to without changing the one it shares its tensors with."""
    if cache is None or not hasattr(cache, "layers"):
        return copy.deepcopy(cache)
    lent = copy.copy(cache)
    lent.layers = [copy.copy(layer) for layer in cache.layers]
    return lent
