"""What a prompt looks like to the frozen model: hidden states pooled over its tokens.

Side by side stand means over all tokens, of what the first block reads and of what one a third of the way up
reads, and the last token's states two thirds of the way up and before the last block. The means say which words
are there; what the prompt asks of them has gathered at its last token by then.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.layout import ModelLayout
from kedit_core.tokens import Ids
from kedit_memory.passages import Passage
from kedit_memory.routing import Routing

_MEAN, _LAST = "mean", "last"
_ROWS, _TOKENS = 32, 1024
_EIGHT = 8

States = Callable[[Sequence[Ids]], Tensor]
"""Reads prompts side by side and gives their states, (prompts, features) on the CPU."""

Read = tuple[Sequence[Ids], Tensor]
"""Prompts, and their states."""


@frozen(kw_only=True)
class Sites:
    """Whose inputs are pooled, each from the lowest block to the highest.

    Attributes:
        means: paths of blocks of whose inputs the mean over all tokens is taken.
        lasts: paths of blocks of whose inputs the last token's is taken.
    """

    means: tuple[str, ...]
    lasts: tuple[str, ...]


def sites_of(layout: ModelLayout) -> Sites:
    """Return the first block and one a third of the way up; one two thirds of the way up and the last."""
    count = len(layout.layers)

    def paths(*places: int) -> tuple[str, ...]:
        kept = dict.fromkeys(min(place, count - 1) for place in places)
        return tuple(layout.layers[place].path for place in kept)

    return Sites(means=paths(0, max(1, count // 3)), lasts=paths(2 * count // 3, count - 1))


class _Enough(Exception):  # noqa: N818
    """All blocks whose inputs are pooled have begun; the rest of the forward is not needed."""


def watch(model: nn.Module, sites: Sites, routing: Routing, *, stop: bool = False) -> list[Any]:
    """Hang up hooks that note pooled states of each prompt in its pass, and return their handles.

    Args:
        model: to watch.
        sites: whose inputs are pooled.
        routing: knows the pass.
        stop: end the forward once all are seen.
    """
    wanted = _wanted(sites)

    def hook_of(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            passage = routing.passage
            if passage is None or not passage.reads_a_prompt:
                return
            hidden = _hidden(args, kwargs)
            for kind, pool in ((_MEAN, _mean), (_LAST, _last)):
                if (kind, path) in wanted:
                    passage.pooled[f"{kind} {path}"] = pool(hidden, passage)
            if stop and len(passage.pooled) == len(wanted):
                raise _Enough

        return hook

    return [
        model.get_submodule(path).register_forward_pre_hook(hook_of(path), with_kwargs=True)
        for path in dict.fromkeys(path for _, path in wanted)
    ]


def pooled_in(passage: Passage, sites: Sites) -> Tensor:
    """Return what the hooks noted of the prompts of a pass, (rows, sites · hidden) float32."""
    found = [passage.pooled[f"{kind} {path}"] for kind, path in _wanted(sites)]
    return torch.cat([one.to(found[-1].device) for one in found], dim=1)


def _wanted(sites: Sites) -> list[tuple[str, str]]:
    """Return what is pooled at which block, in the order in which it stands side by side."""
    return [(_MEAN, path) for path in sites.means] + [(_LAST, path) for path in sites.lasts]


@torch.no_grad()
def pooled_states(model: Any, sites: Sites, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
    """Return the pooled states of prompts, (prompts, sites · hidden) float32 on the CPU.

    The forward ends where the last of them is read.

    Args:
        model: in ``eval`` mode; memories in it stand aside.
        sites: whose inputs are pooled.
        prompts: token ids.
        alone: as each is read by itself: what comes back is then the same bits whatever else is asked.
    """
    found: dict[Ids, Tensor] = {}
    with _reading(model, sites) as read:

        def states(batch: Sequence[Ids]) -> Tensor:
            width = max(map(len, batch))
            rows = [[*ids, *[0] * (width - len(ids))] for ids in batch]
            mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in batch]
            own: Tensor = read(
                torch.tensor(rows, device=model.device), torch.tensor(mask, device=model.device)
            ).cpu()
            return own

        batches = (
            as_alone(prompts, states, mixed=_mixes(model))
            if alone
            else _side_by_side(prompts, states)
        )
        for batch, own in batches:
            found.update(zip(batch, own, strict=True))
    return torch.stack([found[ids] for ids in prompts]) if prompts else torch.empty(0, 0)


def as_alone(prompts: Sequence[Ids], states: States, *, mixed: bool) -> Iterator[Read]:
    """Yield prompts and their states, each with the bits that it has alone.

    Machines multiply rows by the same instructions whatever stands in the other rows, as long as shapes are
    alike; many of them even for one row and for several. So where the first eight prompts of one length have
    side by side the bits that they have alone, more of that length are read side by side, which is three
    times as fast; where not, one by one.

    Args:
        prompts: token ids.
        states: reads some of them side by side.
        mixed: rows go different ways through the model, so that shapes tell nothing; all are read alone.
    """
    lengths: dict[int, list[Ids]] = {}
    for ids in dict.fromkeys(prompts):
        lengths.setdefault(len(ids), []).append(ids)
    for same in lengths.values():
        batches = [same[start : start + _EIGHT] for start in range(0, len(same), _EIGHT)]
        trusted = False
        for number, batch in enumerate(batches):
            if trusted and len(batch) == _EIGHT:
                yield batch, states(batch)
                continue
            own = torch.cat([states([ids]) for ids in batch])
            if number == 0 and len(batches) > 2 and not mixed:
                trusted = torch.equal(own, states(batch))
            yield batch, own


@torch.no_grad()
def pooled_ahead(model: Any, sites: Sites, passage: Passage) -> Tensor:
    """Return the pooled states of the prompts of a pass in its midst, (rows, sites · hidden) float32.

    The model reads the prompts once more, up to the last site and without any memory, so that a module
    below the sites can decide on them. The pass then goes on as if nothing had been read.

    Args:
        model: that runs the pass.
        sites: whose inputs are pooled.
        passage: it reads prompts now.

    Raises:
        ModelError: the model was called with embeddings.
    """
    ids = passage.ids[:, : passage.prompt]
    mask = passage.real[:, : passage.prompt].long()
    positions = passage.given.get("position_ids")
    more = {}
    if isinstance(positions, Tensor) and positions.shape[-1] == passage.shape[1]:
        more["position_ids"] = positions[..., : passage.prompt]
    with _reading(model, sites) as read:
        found: Tensor = read(ids, mask, **more)
    return found


@contextmanager
def _reading(model: Any, sites: Sites) -> Iterator[Any]:
    """Lend a function that returns the pooled states of ids and mask (rows, tokens)."""
    routing = Routing(model)
    seen: list[Passage] = []

    def note(*_: Any) -> None:
        seen[:] = [passage for passage in [routing.passage] if passage is not None]

    def read(ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False, **more)
        except _Enough:
            return pooled_in(seen[0], sites)
        raise RuntimeError("a block whose input is pooled did not run")

    begin = model.get_submodule(sites.means[0]).register_forward_pre_hook(note)
    with routing.reading([begin, *watch(model, sites, routing, stop=True)]):
        yield read


def _mixes(model: nn.Module) -> bool:
    """Tell whether a model has experts, which share out the rows."""
    return any("expert" in name for name, _ in model.named_modules())


def _side_by_side(prompts: Sequence[Ids], states: States) -> Iterator[Read]:
    """Yield different prompts, of like length together, and their states."""
    batch: list[Ids] = []
    for ids in sorted(dict.fromkeys(prompts), key=len):
        if batch and (len(batch) == _ROWS or (len(batch) + 1) * len(ids) > _TOKENS):
            yield batch, states(batch)
            batch = []
        batch.append(ids)
    if batch:
        yield batch, states(batch)


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
