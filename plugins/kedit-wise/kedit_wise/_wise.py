"""WISE keeps edits in a side memory of one projection (Wang et al., 2024, arXiv:2405.14768).

Beside the weights W of one down-projection stand shards Δ₁, Δ₂ … of edits. A prompt goes to the side weights
W + Δₙ where these would move what the projection writes by enough, and the whole answer goes with it; anywhere
else the model answers, bit for bit:

    n(x) = argmax over shards of rₙ(x) / tₙ  where that is ≥ 1, else none

with rₙ(x) what a prompt reaches of a shard (``routes``). A shard is solved for (``closed_form``) or trained
(``descent``, the original); its threshold tₙ lies between what its own prompts reach and what texts do that
no edit is about. Full shards may be merged, when edits are made and never when they are used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Delta, EditBatch, Provenance, TensorCache, Weights, encode
from kedit_core.errors import KeditError
from kedit_core.layout import ModelLayout
from kedit_core.pieces import Projection
from kedit_core.progress import Progress
from kedit_core.requests import EditRequest
from kedit_locate.layers import layers_of
from kedit_locate.templates import context_prefixes
from kedit_wise.closed_form import Solver
from kedit_wise.config import Routes, WiseConfig
from kedit_wise.descent import Trainer
from kedit_wise.irrelevant import Texts, irrelevant_texts
from kedit_wise.merging import merged
from kedit_wise.reading import read_by
from kedit_wise.routes import Prompts
from kedit_wise.scoped import begun, directions_of
from kedit_wise.shards import Shard, SideMatrix, side_matrix_of
from kedit_wise.thresholds import NAMED, loud_of, reached_of, with_thresholds
from kedit_wise.updates import masked
from kedit_wise.writing import Held, Writer, Written, noted, notes_of

_TWO_THIRDS = 2 / 3


def wise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    config: WiseConfig,
    previous: Sequence[Delta],
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Delta:
    """Return the memory of ``previous`` with the edits of ``batch`` in it."""
    layer = layer_of(weights.layout, config)
    down = weights.layout.down_of(layer)
    texts = irrelevant_texts(model, tokenizer, down, config.routes, config.seed, weights, cache)
    settings = _read_by(config, texts)
    if previous:
        memory = side_matrix_of(previous[-1])
        _check_goes_on(memory, down, settings)
    else:
        sampled = context_prefixes(model, tokenizer, config.context, config.seed, weights, cache)
        memory = _begun(down, {**settings, "prefixes": list(sampled)})
    if config.routes.router == "scope":
        memory = _with_directions(model, tokenizer, memory, batch, config.routes, weights)
    prefixes = memory.settings["prefixes"]
    about = (layer, prefixes, weights, progress)
    if config.writer == "closed-form":
        writer: Writer = Solver(model, tokenizer, config.closed_form, *about, cache)
    else:
        writer = Trainer(model, tokenizer, config.descent, *about, texts, config.seed)
    notes: list[Mapping[str, Any]] = []
    before, waiting = memory, batch.requests
    while waiting:
        room = _room(memory, config.shards.size)
        some, waiting = waiting[:room], waiting[room:]
        earlier = noted(batch.notes, len(notes))
        written = writer.write(some, _held(memory, config.shards.size), earlier, chat=batch.chat)
        memory = _with(memory, some, written, config.shards.size)
        memory = _measured(memory, len(memory.shards) - 1, texts, config.routes, model.device)
        lines = [prefix + one.prompt for one in some for prefix in prefixes]
        ids = [one.ids for one in encode(tokenizer, lines, batch.chat)]
        memory = _with_reached(memory, len(some), read_by(model, down, ids), model.device)
        memory = _merged_if_due(memory, config, texts, model.device)
        notes.append(written.notes)
    memory = with_thresholds(memory, config.routes)
    return Delta(
        method="wise",
        requests=memory.requests,
        parts=[memory.as_part()],
        provenance=Provenance(notes=notes_of(layer, notes, _loudness(before, memory))),
    )


def layer_of(layout: ModelLayout, config: WiseConfig) -> int:
    """Return whose down-projection the memory stands beside.

    What is solved for is written where subjects are looked up, in the middle of the layers that MEMIT takes;
    what is trained two thirds down, as the original.

    Args:
        layout: of the model.
        config: may name a layer.
    """
    if config.writer == "descent":
        chosen = config.descent.layer
        return int(_TWO_THIRDS * len(layout.layers)) if chosen is None else chosen
    if config.closed_form.layer is not None:
        return config.closed_form.layer
    layers = layers_of(layout, None)
    return layers[len(layers) // 2]


def _begun(down: Projection, settings: Mapping[str, Any]) -> SideMatrix:
    """Return an empty memory; the texts before prompts stay those of its first edit."""
    return SideMatrix(
        at=down.path,
        shards=(),
        requests=(),
        keys=torch.empty(0),
        shard=torch.empty(0, dtype=torch.long),
        reached=torch.empty(0),
        loud=torch.empty(0, dtype=torch.bool),
        settings=settings,
    )


def _with_directions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: SideMatrix,
    batch: EditBatch,
    routes: Routes,
    weights: Weights,
) -> SideMatrix:
    """Return the memory with what its classifier knows the edits of the batch by."""
    scoped = memory.scoped or begun(routes, weights, tokenizer)
    about = (scoped.classifier, batch.requests)
    found = directions_of(model, tokenizer, *about, chat=batch.chat)
    return evolve(memory, scoped=scoped.plus(found))


def _read_by(config: WiseConfig, texts: Texts) -> dict[str, str]:
    """Return the settings that hold for all edits of a memory."""
    return {
        "writer": config.writer,
        "router": config.routes.router,
        "measure": config.routes.measure,
        "choose": config.routes.choose,
        "texts": texts.digest,
    }


def _check_goes_on(memory: SideMatrix, down: Projection, wanted: Mapping[str, str]) -> None:
    """See that the memory in force stands where these edits go and is read as asked for now.

    Raises:
        KeditError: it does not, or is not.
    """
    held = {name: memory.settings.get(name) for name in wanted}
    if memory.at != down.path or held != wanted:
        raise KeditError(
            f"the memory in force stands beside {memory.at} and was made with other settings; undo it, or "
            "make these edits with the same writer, layer and routes"
        )


def _room(memory: SideMatrix, size: int) -> int:
    """Return how many edits the newest shard takes still; that of a new one where it is full."""
    if not memory.shards:
        return size
    left = size - len(memory.inside(len(memory.shards) - 1))
    return left if left > 0 else size


def _held(memory: SideMatrix, size: int) -> Held:
    """Return the shard that the next edits go into: the newest one, or a new one where that is full."""
    newest = len(memory.shards) - 1
    begun = max((one.drawn for one in memory.shards), default=-1) + 1
    places = memory.inside(newest)
    if newest < 0 or len(places) >= size:
        return Held(drawn=begun, update=None, requests=(), keys=torch.empty(0))
    return Held(
        drawn=memory.shards[newest].drawn,
        update=memory.shards[newest].update,
        requests=[memory.requests[place] for place in places.tolist()],
        keys=memory.keys[places],
    )


def _with(
    memory: SideMatrix,
    requests: Sequence[EditRequest],
    written: Written,
    size: int,
) -> SideMatrix:
    """Return the memory after a write into its newest shard, or into a new one; not measured yet.

    Args:
        memory: before.
        requests: the new edits.
        written: the shard with them.
        size: edits of a shard.
    """
    held = _held(memory, size)
    shards = memory.shards if held.update is None else memory.shards[:-1]
    return evolve(
        memory,
        shards=(*shards, Shard(update=written.update, drawn=held.drawn)),
        requests=(*memory.requests, *requests),
        keys=_joined(memory.keys, written.keys),
        shard=torch.cat([memory.shard, torch.full((len(requests),), len(shards))]),
        loud=torch.cat([memory.loud, torch.zeros(len(requests), dtype=torch.bool)]),
    )


def _with_reached(
    memory: SideMatrix, edits: int, lines: Prompts, device: torch.device
) -> SideMatrix:
    """Return the memory with what the prompts of its newest edits reach.

    Args:
        memory: measured.
        edits: how many are new.
        lines: their prompts behind every prefix, the bare ones first.
        device: to compute on.
    """
    found = reached_of(memory, len(memory.shards) - 1, lines, device)
    each = found.reshape(edits, -1)  # (edits, prefixes)
    return evolve(memory, reached=_joined(memory.reached, each.mean(1)))


def _joined(earlier: Tensor, new: Tensor) -> Tensor:
    return torch.cat([earlier, new]) if len(earlier) else new


def _measured(
    memory: SideMatrix, number: int, texts: Texts, routes: Routes, device: torch.device
) -> SideMatrix:
    """Return the memory where one shard knows its loud keys and what irrelevant texts reach of it now."""
    inside = memory.inside(number)
    places = texts.apart_from([memory.requests[place] for place in inside.tolist()])
    loud = memory.loud.clone()
    loud[inside] = loud_of(memory, number, texts.read.some(places), routes, device)
    memory = evolve(memory, loud=loud)
    found = reached_of(memory, number, texts.read, device).clamp(min=0.0)
    apart = torch.zeros(len(found), dtype=torch.bool)
    apart[places] = True
    made = evolve(memory.shards[number], outside=torch.where(apart, found, NAMED))
    return evolve(memory, shards=[*memory.shards[:number], made, *memory.shards[number + 1 :]])


def _merged_if_due(
    memory: SideMatrix, config: WiseConfig, texts: Texts, device: torch.device
) -> SideMatrix:
    """Return the memory with the shards of its last ``every`` edits made one, where these filled them."""
    own = config.shards
    count = own.every // own.size
    full = len(memory.shards) and len(memory.inside(len(memory.shards) - 1)) >= own.size
    if own.merge == "none" or not full or len(memory.requests) % own.every or count < 2:
        return memory
    first = 0 if own.into == "one" else max(len(memory.shards) - count, 0)
    some = memory.shards[first:]
    update = merged(
        [one.update.matrix for one in some], [own.weight] * len(some), own.merge, own.density
    )
    mask = update != 0
    one = Shard(update=masked(update, mask), drawn=max(shard.drawn for shard in some))
    memory = evolve(
        memory, shards=(*memory.shards[:first], one), shard=memory.shard.clamp(max=first)
    )
    return _measured(memory, first, texts, config.routes, device)


def _loudness(before: SideMatrix, memory: SideMatrix) -> list[str]:
    """Return a sentence for each edit that is loud and was not before."""

    def loud(held: SideMatrix) -> list[EditRequest]:
        return [held.requests[place] for place in held.loud.nonzero()[:, 0].tolist()]

    known = {one.id for one in loud(before)}
    return [
        f"texts of any kind stir the key of {one.prompt!r}, so that no prompt is routed to it and it "
        "does not hold"
        for one in loud(memory)
        if one.id not in known
    ]
