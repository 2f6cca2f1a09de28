"""MEMIT writes many facts at once into several MLP layers (Meng et al., 2023, arXiv:2210.07229).

For each fact a value z is searched for: what the topmost edited block should put out at the subject's last
token for the model to say the target. Layer by layer, lowest first, the down-projection W takes a share of
what is still missing, R, with the update that meets it at the keys K and disturbs other keys least:

    Δ = R Kᵀ (λ C + Kₚ Kₚᵀ + K Kᵀ)⁻¹

C is the second moment of all keys; Kₚ are the keys of earlier edits (``history="exact"``), without which a
stream of edits forgets its first ones.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Delta, EditBatch, Provenance, TensorCache, Weights
from kedit_core.progress import Progress
from kedit_locate.layers import layers_of, shrink_of, site_of
from kedit_locate.moments import metrics_of
from kedit_locate.plans import Plan, Wanted, notes_of
from kedit_locate.rows import edit_rows
from kedit_locate.sizes import noted_before
from kedit_locate.spreading import write_until_it_sticks
from kedit_locate.templates import context_prefixes
from kedit_locate.values import Values, search_values
from kedit_memit.config import MemitConfig


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
    layers = layers_of(weights.layout, config.layers)
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
        crowded=config.crowded,
        passes=config.passes,
        shrink=shrink_of(weights.layout, layers, config.shrink),
    )

    def find(wanted: Wanted) -> Values:
        sizes = noted_before(batch.notes, wanted.number)
        search = wanted.bounded(config.search)
        about = (model, wanted.edits, plan.site, search, progress, wanted.norms)
        return search_values(*about, sizes=sizes)

    written = write_until_it_sticks(model, edits, plan, find, previous, weights, progress)
    return Delta(
        method="memit",
        requests=batch.requests,
        parts=written.parts,
        carry=written.carry,
        provenance=Provenance(
            notes={
                "layers": list(layers),
                "prefixes": list(prefixes),
                **notes_of(plan, written),
            }
        ),
    )
