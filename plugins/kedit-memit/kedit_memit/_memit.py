"""MEMIT writes many facts at once into several MLP layers (Meng et al., 2023, arXiv:2210.07229).

For each fact a value z is searched for: what the topmost edited block should put out at the subject's last
token for the model to say the target. Layer by layer, lowest first, the down-projection W takes a share of
what is still missing, R, with the update that meets it at the keys K and disturbs other keys least:

    Δ = R Kᵀ (λ C + Kₚ Kₚᵀ + K Kᵀ)⁻¹

C is the second moment of all keys; Kₚ are the keys of earlier edits (``history="exact"``), without which a
stream of edits forgets its first ones.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Delta, EditBatch, Provenance, TensorCache, Weights
from kedit_core.layout import ModelLayout
from kedit_core.progress import Progress
from kedit_locate.moments import metrics_of
from kedit_locate.rows import EditRows, edit_rows
from kedit_locate.spreading import Plan, Written, write_until_it_sticks
from kedit_locate.templates import context_prefixes
from kedit_locate.values import Values, search_values
from kedit_memit.config import MemitConfig

_FROM, _TO = 0.12, 0.27
"""Where the layers are, as shares of the depth: about those of GPT-J (3-8 of 28) and Llama (4-8 of 32)."""

_LEAST = 2


def memit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    config: MemitConfig,
    previous: Sequence[Delta],
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Delta:
    """Return the updates that write all facts of the batch."""
    layers = layers_of(weights.layout, config)
    downs = [weights.layout.down_of(layer) for layer in layers]
    prefixes = context_prefixes(model, tokenizer, config.context, config.seed, weights, cache)
    edits = [edit_rows(tokenizer, one, prefixes, chat=batch.chat) for one in batch.requests]
    metrics = metrics_of(model, tokenizer, downs, config.statistics, weights, cache, progress)
    plan = Plan(
        downs=downs,
        metrics=metrics,
        site=site_of(weights.layout, layers[-1]),
        penalty=config.penalty,
        columns=config.keys,
        shares="linear",
        exact=config.history == "exact",
        until=config.until,
        passes=config.passes,
    )

    def find(some: Sequence[EditRows], norm: Tensor) -> Values:
        return search_values(model, some, plan.site, config.search, progress, norm=norm)

    written = write_until_it_sticks(model, edits, plan, find, previous, weights)
    return Delta(
        method="memit",
        requests=batch.requests,
        parts=written.parts,
        carry=written.carry,
        provenance=Provenance(notes=_notes(layers, prefixes, plan, written)),
    )


def _notes(
    layers: Sequence[int], prefixes: Sequence[str], plan: Plan, written: Written
) -> dict[str, Any]:
    notes = {
        "layers": list(layers),
        "site": plan.site,
        "prefixes": list(prefixes),
        "passes": list(written.passes),
        "target_probability": list(written.probability),
        "target_nll": list(written.searched),
        "ridge": [metric.ridge for metric in plan.metrics],
    }
    if written.refusal:
        notes["search"] = f"all layers ran at every step: {written.refusal}"
    if written.apart:
        notes["rows"] = (
            "read one length at a time: pads between them would change what this model says"
        )
    return notes


def layers_of(layout: ModelLayout, config: MemitConfig) -> tuple[int, ...]:
    """Return the layers to edit, ascending."""
    if config.layers is not None:
        return config.layers
    depth = len(layout.layers)
    first = int(_FROM * depth)
    last = max(first + _LEAST - 1, int(_TO * depth))
    # Not the last layer: what it writes at the subject, no later token reads.
    return tuple(range(first, max(min(last, depth - 2), first) + 1))


def site_of(layout: ModelLayout, top: int) -> str:
    """Return the module whose output the values are for: the topmost edited block.

    Where a norm stands between the down-projection and the stream (post-norm families), what a layer
    adds to the block's output is not what its projection writes; there it is that projection.
    """
    return layout.layer(top).path if layout.additive else layout.down_of(top).path
