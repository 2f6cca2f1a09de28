"""ROME: one fact written into one MLP layer as a rank-one update."""

from typing import TYPE_CHECKING

from kedit_core import MethodInfo, hookimpl
from kedit_rome.config import RomeConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Delta, EditBatch, TensorCache, Weights
    from kedit_core.progress import Progress


@hookimpl
def method_info() -> MethodInfo:
    """Say what ROME is."""
    return MethodInfo(
        name="rome",
        summary="one fact as a rank-one update of one MLP layer",
        kind="weights",
        batched=False,
        continual=False,
        needs={"statistics", "gradients", "subject"},
        config=RomeConfig,
        paper="Meng et al., 2022, arXiv:2202.05262; keys as in Gupta et al., 2024, arXiv:2403.07175",
    )


@hookimpl
def compute_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    config: RomeConfig,
    weights: "Weights",
    cache: "TensorCache",
    progress: "Progress",
) -> "Delta":
    """Compute the rank-one update of one fact."""
    from kedit_rome._rome import rome

    return rome(model, tokenizer, batch, config, weights, cache, progress)
