"""PMET: many facts at once, searched for at attention and MLP together, written into the MLPs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit_core import MethodInfo, hookimpl
from kedit_pmet.config import PmetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Delta, EditBatch, TensorCache, Weights
    from kedit_core.progress import Progress


@hookimpl
def method_info() -> MethodInfo:
    """Say what PMET is."""
    return MethodInfo(
        name="pmet",
        summary="many facts at once, searched for at attention and MLP, written into the MLPs",
        kind="weights",
        batched=True,
        continual=True,
        needs={"statistics", "gradients", "subject"},
        config=PmetConfig,
        paper="Li et al., 2024, arXiv:2308.08742",
    )


@hookimpl
def compute_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    config: PmetConfig,
    previous: "Sequence[Delta]",
    weights: "Weights",
    cache: "TensorCache",
    progress: "Progress",
) -> "Delta":
    """Compute the updates that write all facts of the batch."""
    from kedit_pmet._pmet import pmet

    return pmet(model, tokenizer, batch, config, previous, weights, cache, progress)
