"""PMET moves attention and MLP to find what several MLPs are to write (Li et al., 2024, arXiv:2308.08742).

For each fact two shifts are searched for together at the subject's last token of the topmost edited layer:
one of what its attention's out-projection writes, one of what its MLP's down-projection writes. The first
is what attention would have to bring, so that the MLP need not; it is dropped afterwards. From the second
comes the value zᵐ that the MLP shall write. Layer by layer, lowest first, with n layers to go, the
down-projection W takes its share of what is still missing there:

    Δ = R Kᵀ (λ C + Kₚ Kₚᵀ + K Kᵀ)⁻¹,    R = (zᵐ - yᵐ) / √n

C is the second moment of all keys, K are the keys and Kₚ those of earlier edits (``history="exact"``), as
in MEMIT. A lower layer changes what the topmost MLP writes only through its key, so it meets little of
what is missing, and the shares add up to more than there was: that makes up for the shift that is dropped.

Where attention and MLP stand side by side (GPT-J, GPT-NeoX) the two shifts have one gradient: they move
alike until a clamp binds, and about half of what the search found is dropped.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Delta, EditBatch, Provenance, TensorCache, Weights
from kedit_core.errors import ModelError
from kedit_core.layout import ModelLayout
from kedit_core.progress import Progress
from kedit_locate.layers import layers_of, shrink_of
from kedit_locate.moments import metrics_of
from kedit_locate.plans import Find, Plan, Wanted, notes_of
from kedit_locate.rows import EditRows, edit_rows
from kedit_locate.sizes import noted_before
from kedit_locate.spreading import norms_of, write_until_it_sticks
from kedit_locate.templates import context_prefixes
from kedit_locate.values import Site, Values, search_shifts
from kedit_pmet.config import PmetConfig


def pmet(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    config: PmetConfig,
    previous: Sequence[Delta],
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Delta:
    """Return the updates that write all facts of the batch."""
    layers = layers_of(weights.layout, config.layers)
    downs = [weights.layout.down_of(layer) for layer in layers]
    attention = attention_of(weights.layout, layers[-1])
    prefixes = context_prefixes(model, tokenizer, config.context, config.seed, weights, cache)
    edits = [edit_rows(tokenizer, one, prefixes, chat=batch.chat) for one in batch.requests]
    metrics = metrics_of(model, tokenizer, downs, config.statistics, weights, cache, progress)
    plan = Plan(
        downs=downs,
        metrics=metrics,
        site=downs[-1].path,
        penalty=config.penalty,
        columns=config.keys,
        shares=config.shares,
        exact=config.history == "exact",
        until=config.until,
        crowded=config.crowded,
        passes=config.passes,
        shrink=shrink_of(weights.layout, layers, config.shrink),
    )
    find = _search(model, edits, attention, plan, config, batch, weights, progress)
    written = write_until_it_sticks(model, edits, plan, find, previous, weights, progress)
    notes = {"layers": list(layers), "attention": attention, "prefixes": list(prefixes)}
    return Delta(
        method="pmet",
        requests=batch.requests,
        parts=written.parts,
        carry=written.carry,
        provenance=Provenance(notes={**notes, **notes_of(plan, written)}),
    )


def _search(
    model: PreTrainedModel,
    edits: Sequence[EditRows],
    attention: str,
    plan: Plan,
    config: PmetConfig,
    batch: EditBatch,
    weights: Weights,
    progress: Progress,
) -> Find:
    """Return what searches both shifts of some edits and keeps the MLP's."""
    # Both clamps are relative to the unedited model, as activations of an edited one have grown.
    beside = dict(zip(edits, norms_of(model, edits, attention, weights), strict=True))

    def find(wanted: Wanted) -> Values:
        first = Site(
            path=attention,
            clamp=config.attention_clamp,
            decay=config.attention_decay,
            norm=torch.stack([beside[edit] for edit in wanted.edits]),
        )
        second = Site(path=plan.site, norm=wanted.norms)
        sizes = noted_before(batch.notes, wanted.number)
        search = wanted.bounded(config.search)
        about = (model, wanted.edits, [first, second], search, progress)
        _, kept = search_shifts(*about, sizes=sizes)
        return kept

    return find


def attention_of(layout: ModelLayout, layer: int) -> str:
    """Return the path of the attention's out-projection in a layer.

    Raises:
        ModelError: there is no such layer, or it has no such projection.
    """
    found = layout.layer(layer)
    if found.attention_out is None:
        raise ModelError(
            found.path, "it has no attention out-projection, where PMET searches beside the MLP"
        )
    return found.attention_out.path
