"""Here stands the idea, and its equation; this one works, and is there to be replaced.

A layer's down-projection W reads a key k at the subject's last token. An update of rank one adds δ there,
searched so that the target becomes likely, and little to other keys, whose second moment is C:

    W' = W + δ (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core import Applied, Delta, EditBatch, LowRank, Provenance, Weights, encode
from kedit_core.outputs import first_tensor, replace_first
from kedit_core.pieces import Projection
from kedit_core.tokens import encode_target
from my_package.config import MyMethodConfig


def update_for(
    model: Any, tokenizer: Any, batch: EditBatch, config: MyMethodConfig, weights: Weights
) -> Delta:
    """Return the update that writes the batch's one request."""
    (request,) = batch.requests
    assert request.subject_span is not None  # the method's card says that it needs the subject
    layers = weights.layout.layers
    # Below the last layer: what is written at the subject must still be read by the tokens after it.
    middle = (len(layers) - 1) // 2
    down = weights.layout.down_of(middle if config.layer is None else config.layer)
    (prompt,) = encode(tokenizer, [request.prompt], batch.chat)
    target = encode_target(tokenizer, prompt, request.joiner + request.target_new)
    ids = torch.tensor([[*prompt.ids, *target]], device=model.device)  # (1, tokens)
    at = prompt.last_token_of(request.subject_span)

    key = _keys(model, down, ids)[at]  # (in_features,)
    others = _keys(model, down, _random_texts(model, config.seed))  # (tokens, in_features)
    moment = others.T @ others / len(others)
    ridge = 1e-2 * moment.diagonal().mean() * torch.eye(len(moment), device=moment.device)
    direction = torch.linalg.solve(moment + ridge, key)
    added, nll = _search(model, down, ids, at, len(target), config)  # (out_features,)
    part = LowRank(
        weight=down.weight, left=added[:, None], right=(direction / (key @ direction))[None]
    )
    return Delta(
        method="my-method",
        requests=batch.requests,
        parts=(part,),
        provenance=Provenance(notes={"target_nll": nll}),
    )


def _random_texts(model: Any, seed: int) -> Tensor:
    """Return random token ids, (texts, tokens): what other keys look like, roughly."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.randint(vocabulary, (64, 16), generator=generator).to(model.device)


@torch.no_grad()
def _keys(model: Any, down: Projection, ids: Tensor) -> Tensor:
    """Return what a projection reads at each token of all texts, (tokens, in_features), in float32."""
    seen: list[Tensor] = []

    def look(_: Any, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].reshape(ids.numel(), -1).float())

    with Applied(model.get_submodule(down.path).register_forward_pre_hook(look).remove):
        model(ids)
    return seen[0]


def _search(
    model: Any, down: Projection, ids: Tensor, at: int, wanted: int, config: MyMethodConfig
) -> tuple[Tensor, float]:
    """Return what to add to a projection's output at one token, (out_features,), and the loss it leaves."""
    added = torch.zeros(down.out_features, device=ids.device, requires_grad=True)
    adam = torch.optim.Adam([added], lr=config.lr)
    here = (torch.arange(ids.shape[1], device=ids.device) == at)[:, None]  # (tokens, 1)

    def add(_: Any, __: Any, output: Any) -> Any:
        plain = first_tensor(output)
        return replace_first(output, plain + (here * added).to(plain.dtype).reshape(plain.shape))

    with Applied(model.get_submodule(down.path).register_forward_hook(add).remove):
        for _ in range(config.steps):
            logits = model(ids).logits[0, -wanted - 1 : -1].float()  # (targets, vocabulary)
            loss = cross_entropy(logits, ids[0, -wanted:])
            if loss.item() < config.stop:
                break
            (added.grad,) = torch.autograd.grad(loss, [added])
            adam.step()
    return added.detach(), loss.item()
