"""Attention of suffixes to prefixes that were read once, without putting both behind each other.

A KV cache copies the keys and values of all it holds before those of every forward; attention then repeats
them for every head of a group, and computes gradients for them that nobody asks for. Here attention reads
what stands before a suffix where it lies,

    softmax([q K_beforeᵀ, q K_ownᵀ] s) [V_before; V_own],

and its gradient goes to the suffix alone. A layer takes this way if, in a forward that was watched, the
keys and values that its cache gave went straight into torch's attention. On a GPU, and in a dtype of less
than 32 bits, torch's own attention stays: it keeps its scores in its kernel, and to more bits.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_SDPA = "sdpa"
_DTYPES = (torch.float32, torch.float64)
_KNOWN = {"scaling", "dropout", "is_causal", "position_ids", "use_cache"}
_Attend = Callable[..., tuple[Tensor, Tensor | None]]


def borrowed(cache: Any) -> Any:
    """Return a cache that can be written to without changing the one it shares its tensors with.

    Args:
        cache: of which nothing changes; None stays None.
    """
    if cache is None:
        return None
    lent = copy.copy(cache)
    lent.layers = [copy.copy(layer) for layer in cache.layers]
    return lent


@contextmanager
def watched(cache: Any) -> Iterator[tuple[Any, set[int]]]:
    """Lend a cache for one forward, and tell afterwards which layers can read it where it lies.

    Args:
        cache: as ``borrowed`` takes it.
    """
    lent, found = borrowed(cache), set[int]()
    given: list[tuple[int, Tensor, Tensor]] = []

    def watch(number: int, layer: Any) -> None:
        update = layer.update

        def updated(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = update(*args, **kwargs)
            given[:] = [(number, keys, values)]
            return keys, values

        layer.update = updated

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        number, keys, values = given.pop() if given else (0, None, None)
        if keys is key and values is value and _ordinary(query, mask, options):
            found.add(number)
        return torchs(module, query, key, value, mask, **options)

    for number, layer in enumerate(lent.layers if lent is not None else ()):
        if type(layer) is DynamicLayer:
            watch(number, layer)
    with _in_place_of_torchs(attend) as torchs, _own_again(lent):
        yield lent, found
    if torchs is not sdpa_attention_forward:  # somebody's own, which may do more
        found.clear()


@contextmanager
def read_where_it_lies(cache: Any, layers: frozenset[int]) -> Iterator[Any]:
    """Lend a cache for one forward in which some layers read it where it lies.

    Args:
        cache: as ``borrowed`` takes it.
        layers: numbers of the layers, as ``watched`` found them.
    """
    lent = borrowed(cache)
    given: list[tuple[Any, Tensor, Tensor]] = []

    def lend(layer: Any) -> None:
        def own(keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            given[:] = [(layer, keys, values)]
            return keys, values

        layer.update = own

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        layer, keys, values = given.pop() if given else (None, query, query)
        if layer is None or keys is not key or values is not value:
            return torchs(module, query, key, value, mask, **options)
        scale = options.get("scaling")
        before = layer.keys, layer.values, None if mask is None else ~mask
        own = query, key, value
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        said: Tensor = _Attention.apply(*own, *before, scale)  # type: ignore[no-untyped-call]
        return said.transpose(1, 2), None

    for number in layers:
        lend(lent.layers[number])
    with _in_place_of_torchs(attend) as torchs, _own_again(lent):
        yield lent


@contextmanager
def _own_again(lent: Any) -> Iterator[None]:
    """Let the layers of a cache update themselves again at the end.

    What stood in for their ``update`` holds them: its tensors would wait for the garbage collector.
    """
    try:
        yield
    finally:
        for layer in lent.layers if lent is not None else ():
            vars(layer).pop("update", None)


class _Attention(torch.autograd.Function):
    """Attention to keys and values of which those that stand before need no gradient.

    ``query`` (rows, heads, tokens, width), ``key`` and ``value`` (rows, key heads, tokens, width), ``before_…``
    (rows, key heads, tokens before, width); ``unseen`` (rows, 1 or heads, tokens, all tokens) tells what a
    token must not see. Heads of a group are read as tokens of one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        before_keys: Tensor,
        before_values: Tensor,
        unseen: Tensor | None,
        scale: float,
    ) -> Tensor:
        rows, heads, tokens, _ = query.shape
        batch, before = rows * key.shape[1], before_keys.shape[2]
        own = query.reshape(batch, -1, query.shape[3]) * scale
        key, value = (one.reshape(batch, tokens, -1) for one in (key, value))
        before_keys, before_values = (
            one.reshape(batch, before, -1) for one in (before_keys, before_values)
        )
        scores = torch.cat([torch.bmm(own, before_keys.mT), torch.bmm(own, key.mT)], dim=-1)
        if unseen is not None:
            scores.view(rows, heads, tokens, -1).masked_fill_(unseen, float("-inf"))
        share = torch.softmax(scores, -1)
        to_before, to_own = _cut(share, before)
        said = torch.bmm(to_before, before_values).baddbmm_(to_own, value)
        ctx.save_for_backward(own, key, value, before_keys, before_values, share, to_own)
        ctx.scale = scale
        return said.view(rows, heads, tokens, -1)

    @staticmethod
    def backward(ctx: Any, said: Tensor) -> Any:
        own, key, value, before_keys, before_values, share, to_own = ctx.saved_tensors
        rows, heads, tokens, _ = said.shape
        before = before_keys.shape[1]
        said = said.reshape(len(own), own.shape[1], -1)
        shares = torch.cat([torch.bmm(said, before_values.mT), torch.bmm(said, value.mT)], dim=-1)
        scores = torch._softmax_backward_data(shares, share, -1, share.dtype)
        to_before, scores = _cut(scores, before)
        query = torch.bmm(to_before, before_keys).baddbmm_(scores, key).mul_(ctx.scale)
        keys, values = torch.bmm(scores.mT, own), torch.bmm(to_own.mT, said)
        groups = len(own) // rows
        return (
            query.view(rows, heads, tokens, -1),
            keys.view(rows, groups, tokens, -1),
            values.view(rows, groups, tokens, -1),
            *(None,) * 4,
        )


def _cut(share: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """Return what goes to the tokens before and to the own ones, each in one piece: products are fast then."""
    return share[..., :before].contiguous(), share[..., before:].contiguous()


def _ordinary(query: Tensor, mask: Any, options: dict[str, Any]) -> bool:
    """Tell whether attention is asked for nothing but what is done here."""
    strange = {name for name, given in options.items() if given is not None} - _KNOWN
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and (query.shape[2] == 1 if mask is None else mask.dtype == torch.bool)
        and not options.get("dropout")
        and not strange
    )


@contextmanager
def _in_place_of_torchs(attend: _Attend) -> Iterator[_Attend]:
    """Let models that attend through torch attend otherwise; yields what stood there."""
    before = ALL_ATTENTION_FUNCTIONS[_SDPA]
    own = ALL_ATTENTION_FUNCTIONS._local_mapping.get(_SDPA)
    ALL_ATTENTION_FUNCTIONS[_SDPA] = attend
    try:
        yield before
    finally:
        ALL_ATTENTION_FUNCTIONS.pop(_SDPA)
        if own is not None:
            ALL_ATTENTION_FUNCTIONS[_SDPA] = own
