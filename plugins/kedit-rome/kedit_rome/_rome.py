"""ROME writes one fact into one MLP layer as a key-value pair (Meng et al., 2022, arXiv:2202.05262).

A layer's down-projection W maps keys to values. Among all W' with W' k = W k + δ, the one that disturbs the
other keys least, measured by their second moment C, differs from W by a rank-one matrix:

    W' = W + δ (C⁻¹k)ᵀ / (kᵀ C⁻¹ k)

k is the mean key over the prompt behind sampled prefixes (R-ROME, arXiv:2403.07175). Where a text begins with
the subject, many tokenizers give it other tokens than in the middle of one, and so another key s, which that
update misses. ``keys="both"`` writes δ at k and at s; with K = [k s] that is of rank one still:

    W' = W + δ 1ᵀ (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹

``keys="mean"`` is R-ROME alone. The original takes its direction C⁻¹k from the mean but meets the value at the
bare prompt's key k₀, so its denominator k₀ᵀC⁻¹k can be small and the update explode; ``keys="bare"`` is for
comparing with it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Delta, EditBatch, Provenance, TensorCache, Weights
from kedit_core.deltas import update_of
from kedit_core.layout import ModelLayout
from kedit_core.pieces import Projection
from kedit_core.progress import Progress
from kedit_locate.keys import keys_of, mean_key
from kedit_locate.moments import metric_of
from kedit_locate.rows import edit_rows
from kedit_locate.sizes import noted, noted_before
from kedit_locate.solver import rank_one, shared_shift
from kedit_locate.templates import context_prefixes
from kedit_locate.values import Values, search_values
from kedit_rome.config import RomeConfig

_DEPTH = 0.16
"""Where the layer is, as a share of the depth: between GPT-J's 5 of 28 and Llama's 5 of 32."""

_APART = "read one length at a time: pads between them would change what this model says"


def rome(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    config: RomeConfig,
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Delta:
    """Return the rank-one update that writes the batch's one request."""
    (request,) = batch.requests
    layer = layer_of(weights.layout, config)
    down = weights.layout.down_of(layer)
    prefixes = context_prefixes(model, tokenizer, config.context, config.seed, weights, cache)
    rows = edit_rows(tokenizer, request, prefixes, chat=batch.chat)
    keys = keys_of(model, rows.rewrites, down)  # (rows, in_features)
    sizes = noted_before(batch.notes, 0)
    values = search_values(model, [rows], down.path, config.search, progress, sizes=sizes)
    metric = metric_of(model, tokenizer, down, config.statistics, weights, cache, progress)
    average = mean_key(keys)  # (in_features,)
    if config.keys == "both":
        start = keys_of(model, [rows.anchor], down)  # (1, in_features)
        factors = shared_shift(torch.cat([average[None], start]), values.shift[0], metric)
    else:
        key = average if config.keys == "mean" else keys[0]
        residual = values.value[0] - _written(model, weights, down, key)  # (out_features,)
        factors = rank_one(key, residual, metric, along=average)
    return Delta(
        method="rome",
        requests=batch.requests,
        parts=(update_of(down.weight, factors.left, factors.right),),
        provenance=Provenance(notes=_notes(layer, prefixes, values, metric.ridge)),
    )


def layer_of(layout: ModelLayout, config: RomeConfig) -> int:
    """Return the layer to edit."""
    return config.layer if config.layer is not None else int(_DEPTH * len(layout.layers))


def _written(model: PreTrainedModel, weights: Weights, down: Projection, key: Tensor) -> Tensor:
    """Return what the projection writes for a key, W k + b, (out_features,)."""
    bias = getattr(model.get_submodule(down.path), "bias", None)
    written = weights.matrix(down.weight).to(key) @ key
    return written if not isinstance(bias, Tensor) else written + bias.detach().to(key)


def _notes(layer: int, prefixes: tuple[str, ...], values: Values, ridge: float) -> dict[str, Any]:
    probability = float(torch.tensor(values.nll[0]).neg().exp())
    notes = {
        "layer": layer,
        "prefixes": list(prefixes),
        "steps": values.steps[0],
        "target_nll": values.nll[0],
        "target_probability": probability,
        "sizes": [noted(values.sizes)],
        "ridge": ridge,
    }
    notes |= {"rows": _APART} if values.apart else {}
    return notes | (
        {"layers": f"all run at every step: {values.refusal}"} if values.refusal else {}
    )
