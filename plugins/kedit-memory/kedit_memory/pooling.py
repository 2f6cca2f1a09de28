"""What a prompt looks like to the frozen model: hidden states pooled over its tokens.

Three poolings, side by side: the mean of what the first block reads, and the mean and the last token of what
a block half way up reads. The first says which words are there, the others what they ask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.layout import ModelLayout
from kedit_core.tokens import Ids
from kedit_memory.passages import Passage
from kedit_memory.routing import Routing

POOLINGS = 3
"""How many vectors of the model's width stand side by side in a pooled state."""

_FIRST, _MIDDLE = "first", "middle"
_ROWS, _TOKENS = 32, 1024


@frozen(kw_only=True)
class Sites:
    """Whose inputs are pooled.

    Attributes:
        first: path of the first block.
        middle: path of the block half way up.
    """

    first: str
    middle: str


def sites_of(layout: ModelLayout) -> Sites:
    """Return the first block and the one half way up."""
    layers = layout.layers
    return Sites(first=layers[0].path, middle=layers[len(layers) // 2].path)


class _Enough(Exception):  # noqa: N818
    """Both blocks have begun; the rest of the forward is not needed."""


def watch(model: nn.Module, sites: Sites, routing: Routing, *, stop: bool = False) -> list[Any]:
    """Hang up hooks that note pooled states of each prompt in its pass, and return their handles.

    Args:
        model: to watch.
        sites: whose inputs are pooled.
        routing: knows the pass.
        stop: end the forward once both are seen.
    """

    def first(_: nn.Module, args: Any, kwargs: Any) -> None:
        passage = routing.passage
        if passage is not None and passage.reads_a_prompt:
            passage.pooled[_FIRST] = _mean(_hidden(args, kwargs), passage)

    def middle(_: nn.Module, args: Any, kwargs: Any) -> None:
        passage = routing.passage
        if passage is not None and passage.reads_a_prompt:
            hidden = _hidden(args, kwargs)
            both = [_mean(hidden, passage), _last(hidden, passage)]
            passage.pooled[_MIDDLE] = torch.cat(both, dim=1)
        if stop:
            raise _Enough

    return [
        model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
        for path, hook in ((sites.first, first), (sites.middle, middle))
    ]


def pooled_in(passage: Passage) -> Tensor:
    """Return what the hooks noted of the prompts of a pass, (rows, 3 · hidden) float32."""
    middle = passage.pooled[_MIDDLE]
    return torch.cat([passage.pooled[_FIRST].to(middle.device), middle], dim=1)


@torch.no_grad()
def pooled_states(model: Any, sites: Sites, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
    """Return the pooled states of prompts, (prompts, 3 · hidden) float32 on the CPU.

    The forward ends half way up.

    Args:
        model: in ``eval`` mode; memories in it change nothing of what is read here.
        sites: whose inputs are pooled.
        prompts: token ids.
        alone: read each by itself: what comes back is then the same bits whatever else is asked.
    """
    found: dict[Ids, Tensor] = {}
    for batch in _batches(prompts, 1 if alone else _ROWS):
        width = max(map(len, batch))
        rows = [[*ids, *[0] * (width - len(ids))] for ids in batch]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in batch]
        with _reading(model, sites) as read:
            states = read(
                torch.tensor(rows, device=model.device), torch.tensor(mask, device=model.device)
            ).cpu()
        found.update(zip(batch, states, strict=True))
    return torch.stack([found[ids] for ids in prompts]) if prompts else torch.empty(0, 0)


@contextmanager
def _reading(model: Any, sites: Sites) -> Iterator[Any]:
    """Lend a function that returns the pooled states of ids and mask (rows, tokens)."""
    routing = Routing(model)
    seen: list[Passage] = []

    def note(*_: Any) -> None:
        seen[:] = [passage for passage in [routing.passage] if passage is not None]

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        except _Enough:
            return pooled_in(seen[0])
        raise RuntimeError("the block half way up did not run")

    begin = model.get_submodule(sites.first).register_forward_pre_hook(note)
    hooks = [begin, *watch(model, sites, routing, stop=True)]
    with routing.attach(hooks):
        yield read


def _batches(prompts: Sequence[Ids], rows: int) -> Iterator[list[Ids]]:
    """Yield different prompts, of like length together."""
    batch: list[Ids] = []
    for ids in sorted(dict.fromkeys(prompts), key=len):
        if batch and (len(batch) == rows or (len(batch) + 1) * len(ids) > _TOKENS):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _hidden(args: Any, kwargs: Any) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _mean(hidden: Tensor, passage: Passage) -> Tensor:
    """Return the mean over the tokens of each prompt, (rows, hidden) float32; pads do not count."""
    counts = passage.prompts.to(hidden.device)[..., None]  # (rows, tokens, 1)
    total = torch.where(counts, hidden.float(), 0.0).sum(1)
    return total / counts.sum(1).clamp(min=1)


def _last(hidden: Tensor, passage: Passage) -> Tensor:
    """Return the state at the last token of each prompt, (rows, hidden) float32."""
    counts = passage.prompts.to(hidden.device)
    places = torch.arange(counts.shape[1], device=hidden.device)
    last = torch.where(counts, places, 0).amax(1)  # (rows,)
    return hidden[torch.arange(len(last), device=hidden.device), last].float()
