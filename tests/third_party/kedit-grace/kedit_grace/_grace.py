"""GRACE keeps edits in a codebook beside one layer (Hartvigsen et al., 2023, arXiv:2211.11031).

An entry has a key (what the layer reads at the prompt's last token), a value and a radius:

    out(h) = vᵢ  where  i = argminⱼ ‖h - kⱼ‖ / rⱼ  and  ‖h - kᵢ‖ < rᵢ,   else  layer(h)

Every token is looked up by itself, so a prompt's end is met alike with and without a KV cache.
Entries of different answers that would overlap share the distance between them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kedit_core import Applied, Delta, EditBatch, Scope, SideMemory, Weights, encode
from kedit_core.outputs import first_tensor, replace_first
from kedit_core.tokens import encode_target


def grace(
    model: Any, tokenizer: Any, batch: EditBatch, config: Any, previous: Any, weights: Weights
) -> Delta:
    """Return the codebook of ``previous`` with an entry for each request of ``batch``."""
    layers = weights.layout.layers
    layer = weights.layout.layer(len(layers) * 2 // 3 if config.layer is None else config.layer)
    held = list(previous[-1].requests) if previous else []
    book = {k: v.clone() for k, v in previous[-1].parts[0].tensors.items()} if previous else {}
    for request in batch.requests:
        (prompt,) = encode(tokenizer, [request.prompt], batch.chat)
        target = encode_target(tokenizer, prompt, request.joiner + request.target_new)
        key, value = _entry(model, prompt.ids, target, layer, config.steps)
        entry = {"keys": key, "values": value, "radii": config.radius * key.norm()}
        for place, other in enumerate(held):
            half = (book["keys"][place] - key).norm() / 2
            if other.target_new != request.target_new:
                book["radii"][place] = min(book["radii"][place], half)
                entry["radii"] = min(entry["radii"], half)
        for name, new in entry.items():
            book[name] = torch.cat([book[name], new[None]]) if held else new[None]
        held.append(request)
    part = SideMemory(at=layer.path, tensors=book, settings={"layer": layer.index})
    return Delta(method="grace", requests=batch.requests, parts=[part])


def attach(model: Any, delta: Delta) -> Applied:
    """Put the codebook beside its layer."""
    part: Any = delta.parts[0]
    book = {name: one.to(model.device) for name, one in part.tensors.items()}

    def look_up(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        share, nearest = _shares(args[0] if args else kwargs["hidden_states"], book).min(-1)
        plain = first_tensor(output)  # (rows, tokens, hidden); share, nearest: (rows, tokens)
        values = book["values"][nearest].to(plain.dtype)
        return replace_first(output, torch.where(share[..., None] < 1, values, plain))

    block = model.get_submodule(part.at)
    return Applied(block.register_forward_hook(look_up, with_kwargs=True).remove)


def scope(model: Any, tokenizer: Any, delta: Delta, prompts: Any) -> Scope:
    """Return how near each prompt's tokens come to an entry: 1 at its key, ½ at its radius."""
    part: Any = delta.parts[0]
    probability, met = torch.zeros(len(prompts)), []
    for place, text in enumerate(encode(tokenizer, prompts, delta.provenance.chat)):
        # (tokens, entries)
        share = _shares(_read(model, text.ids, part.settings["layer"]), part.tensors)
        probability[place] = 0.5 ** float(share.min() ** 2)
        entry = int(share.argmin()) % len(delta.requests)
        met.append(delta.requests[entry].id if share.min() < 1 else None)
    return Scope(probability=probability, requests=met)


def _shares(hidden: Tensor, book: Mapping[str, Tensor]) -> Tensor:
    """Return the distances of hidden states to all keys, in radii, (…, entries)."""
    gap = hidden.float()[..., None, :] - book["keys"]  # (…, entries, hidden)
    distance: Tensor = torch.linalg.vector_norm(gap, dim=-1)
    return distance / book["radii"]


@torch.no_grad()
def _read(model: Any, ids: Any, layer: int) -> Tensor:
    """Return what a layer reads for one text, (tokens, hidden), in float32."""
    said = model(torch.tensor([ids], device=model.device), output_hidden_states=True)
    hidden: Tensor = said.hidden_states[layer][0]
    return hidden.float().cpu()


def _entry(model: Any, prompt: Any, target: Any, layer: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Return the key of a prompt and the value that makes its target likely, (hidden,) each."""
    last, ids = len(prompt) - 1, torch.tensor([[*prompt, *target]], device=model.device)
    key = _read(model, prompt, layer.index)[last]
    value = key.to(model.device, copy=True).requires_grad_()
    adam = torch.optim.Adam([value], lr=float(key.std()) / 10)

    def put(_: Any, __: Any, output: Any) -> Any:
        plain = first_tensor(output)  # (1, tokens, hidden)
        here = torch.arange(plain.shape[1], device=plain.device)[:, None] == last
        return replace_first(output, torch.where(here, value.to(plain.dtype), plain))

    with Applied(model.get_submodule(layer.path).register_forward_hook(put).remove):
        for _ in range(steps):
            logits = model(ids).logits[0, last:-1].float()  # (targets, vocabulary)
            loss = torch.nn.functional.cross_entropy(logits, ids[0, last + 1 :])
            (value.grad,) = torch.autograd.grad(loss, [value])
            adam.step()
    return key, value.detach().cpu()
