"""A model from a token and a layer on: what stands before and below is computed once.

Nothing before the place where something is changed ever changes, so it goes into a KV cache, and a forward
runs from that place on; layers below the change are skipped (``lower``), and where it is known how a layer
attends, the cache is read where it lies (``attending``). Rows of different lengths share a
forward with pads between prefix and suffix. Models for which those pads would not be nothing (a sliding
window counts them as places, ALiBi without positions as distance, a recurrent state takes them in) read
rows of one length at a time. What a recurrent state holds is written over as a model reads on, so there is
nothing to start from again: such models read their rows whole.

    suffix = read_suffix(model, rows, starts)
    entered = enter(model, suffix, blocks_below(model, [site]), row, place)  # a forward of all layers
    logits = run(model, entered.suffix, row, place)                          # as often as wanted
"""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from kedit_locate.attending import borrowed, read_where_it_lies, watched
from kedit_locate.capture import behind_rows
from kedit_locate.lower import Lower, remembering, skipped
from kedit_locate.picking import head_reads, head_writes, mlp_reads
from kedit_locate.prefixes import read_prefixes
from kedit_locate.rows import padded
from kedit_locate.saying import Head, exact, head_of
from kedit_locate.sizes import out_of_memory


@frozen(kw_only=True)
class Suffix:
    """Rows from some token on, and what stands before and below them.

    Attributes:
        ids: (rows, tokens).
        mask: (rows, prefix tokens + tokens).
        positions: (rows, tokens).
        starts: place in its row of each suffix's first token; 0 everywhere where rows are whole.
        cache: KV of the prefixes, or None when there is none.
        lower: the layers that are skipped and what they wrote, or None when all layers run.
        narrow: path of the last MLP where it computes only tokens whose logits are needed, or None.
        direct: numbers of the layers whose attention reads the cache where it lies.
        head: the head where it is a matrix and the logits are what it writes, or None.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    starts: tuple[int, ...]
    cache: Any
    lower: Lower | None = None
    narrow: str | None = None
    direct: frozenset[int] = frozenset()
    head: Head | None = None


@frozen(kw_only=True)
class Entered:
    """Suffixes after a forward of all layers.

    Attributes:
        suffix: of which the lower layers are skipped, or all layers run.
        logits: (picked, vocabulary) of that forward.
        refusal: why no layer is skipped although it was asked for; else empty.
    """

    suffix: Suffix
    logits: Tensor
    refusal: str = ""


@torch.no_grad()
def read_suffix(model: nn.Module, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> Suffix:
    """Read what stands before each row's start into a cache and return what comes from there on.

    Args:
        model: in ``eval`` mode.
        rows: token ids.
        starts: for each row where its suffix starts; of one length where pads between prefix and suffix
            would do harm (``kedit_core.reading.reach_past_pads``).

    Returns:
        The suffixes; whole rows where the model cannot read on from what it keeps.
    """
    device = next(model.parameters()).device
    before = [row[:start] for row, start in zip(rows, starts, strict=True)]
    more = max(len(row) - start for row, start in zip(rows, starts, strict=True))
    prefixes = read_prefixes(model, before, more)
    if prefixes is None:
        starts = [0 for _ in rows]
    after = [row[start:] for row, start in zip(rows, starts, strict=True)]
    ids, mask = padded(after, device)
    whole_mask = mask if prefixes is None else torch.cat([prefixes.mask, mask], dim=1)
    alike = len(set(starts)) == 1  # so that all pads are behind the rows
    first = torch.tensor(starts, device=device, dtype=torch.long)
    return Suffix(
        ids=ids,
        mask=behind_rows(model, whole_mask) if alike else whole_mask,
        positions=first[:, None] + torch.arange(ids.shape[1], device=device),
        starts=tuple(starts),
        cache=None if prefixes is None else prefixes.cache,
    )


def run(model: nn.Module, suffix: Suffix, row: Tensor, place: Tensor) -> Tensor:
    """Run the suffixes and return the logits at some tokens, (picked, vocabulary) in float32 or more.

    Args:
        model: in ``eval`` mode.
        suffix: stays good for another run.
        row: (picked,) rows of the tokens whose logits are needed.
        place: (picked,) their places in the suffixes.
    """
    if suffix.head is not None:
        return suffix.head.logits(read(model, suffix, row, place))
    with read_where_it_lies(suffix.cache, suffix.direct) as cache:
        logits = _forward(model, suffix, cache, row, place)
    return logits.to(exact(logits.dtype))


def read(model: nn.Module, suffix: Suffix, row: Tensor, place: Tensor) -> Tensor:
    """Run the suffixes and return what their head would read at some tokens, (picked, width).

    Args:
        model: in ``eval`` mode.
        suffix: with a head.
        row: (picked,) rows of the tokens.
        place: (picked,) their places in the suffixes.
    """
    with read_where_it_lies(suffix.cache, suffix.direct) as cache:
        return _forward(model, suffix, cache, row, place, bare=True)


def _forward(
    model: nn.Module, suffix: Suffix, cache: Any, row: Tensor, place: Tensor, *, bare: bool = False
) -> Tensor:
    """Return the logits at some tokens; where it is bare, what the head reads there."""
    shape = suffix.ids.shape
    with (
        skipped(model, suffix.lower),
        mlp_reads(model, suffix.narrow, shape, row, place),
        head_reads(model, shape, row, place, bare=bare) as picked,
    ):
        output = model(
            input_ids=suffix.ids,
            attention_mask=suffix.mask,
            position_ids=suffix.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    logits: Tensor = output.logits[0] if picked else output.logits[row, place]
    return logits


@torch.no_grad()
def enter(
    model: nn.Module,
    suffix: Suffix,
    blocks: Sequence[str],
    row: Tensor,
    place: Tensor,
    *,
    narrow: str | None = None,
    verify: bool = True,
) -> Entered:
    """Run all layers once, keep what the lowest ones write, and return suffixes that skip them.

    Args:
        model: in ``eval`` mode, as it will be run but for what changes above the blocks.
        suffix: of which all layers run.
        blocks: to skip, as ``lower.blocks_below`` returns them; where there is none, none is.
        row: (picked,) rows of the tokens whose logits are needed.
        place: (picked,) their places in the suffixes.
        narrow: path of the MLP that need compute only those tokens, as ``picking.last_mlp`` returns it.
        verify: run the suffixes that skip once, and compare.
    """
    with (
        remembering(model, blocks) as kept,
        watched(suffix.cache) as (cache, direct),
        head_writes(model) as written,
    ):
        said = _forward(model, suffix, cache, row, place)
    logits = said.to(exact(said.dtype))
    if not kept and narrow is None:
        return Entered(suffix=suffix, logits=logits)
    alone = len(said) and any(torch.equal(one, said[None]) for one in written)
    head = head_of(model) if alone else None
    lighter = evolve(_without(suffix, kept[0]) if kept else suffix, narrow=narrow)
    lighter = evolve(lighter, direct=frozenset(direct), head=head)
    refusal = _difference(model, lighter, row, place, logits) if verify else ""
    return Entered(suffix=suffix if refusal else lighter, logits=logits, refusal=refusal)


def _difference(
    model: nn.Module, suffix: Suffix, row: Tensor, place: Tensor, expected: Tensor
) -> str:
    """Return what is wrong with suffixes that skip layers, in words; nothing where nothing is."""
    try:
        logits = run(model, suffix, row, place)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        if out_of_memory(error):
            raise
        return f"without its lower layers it raises {type(error).__name__}"
    off = float((logits - expected).abs().max()) if len(logits) else 0.0
    # The same sums of the same numbers: next to nothing of the dtype's precision may be lost.
    eps = torch.finfo(next(model.parameters()).dtype).eps
    close = off <= eps**0.75 * float(expected.abs().max())
    return "" if close else f"without its lower layers its logits differ by {off:.1e}"


def _without(suffix: Suffix, lower: Lower) -> Suffix:
    """Return the same suffixes without the layers that were remembered.

    Nothing of the cache of a skipped layer is read but its length, so its memory is given up.
    """
    cache = borrowed(suffix.cache)
    for layer in cache.layers[: len(lower.blocks)] if cache is not None else ():
        layer.keys = layer.keys.new_zeros(()).expand(layer.keys.shape)
        layer.values = layer.values.new_zeros(()).expand(layer.values.shape)
    return evolve(suffix, cache=cache, lower=lower)


def rows_of(suffix: Suffix, rows: Tensor) -> Suffix:
    """Return some of the rows.

    Args:
        suffix: all rows.
        rows: (kept,) which ones.
    """
    cache = borrowed(suffix.cache)
    for layer in cache.layers if cache is not None else ():
        hollow = not any(layer.keys.stride())
        width = (len(rows), *layer.keys.shape[1:])
        layer.keys = layer.keys[:1].expand(width) if hollow else layer.keys[rows]
        width = (len(rows), *layer.values.shape[1:])
        layer.values = layer.values[:1].expand(width) if hollow else layer.values[rows]
    lower = suffix.lower and evolve(suffix.lower, hidden=suffix.lower.hidden[rows])
    return evolve(
        suffix,
        ids=suffix.ids[rows],
        mask=suffix.mask[rows],
        positions=suffix.positions[rows],
        starts=tuple(suffix.starts[row] for row in rows.tolist()),
        cache=cache,
        lower=lower,
    )
