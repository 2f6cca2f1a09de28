"""MEMIT: many facts at once, spread over several MLP layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit_core import MethodInfo, hookimpl
from kedit_memit.config import MemitConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Applied, Delta, EditBatch, TensorCache, Weights
    from kedit_core.progress import Progress


@hookimpl
def method_info() -> MethodInfo:
    """Say what MEMIT is."""
    return MethodInfo(
        name="memit",
        summary="many facts at once, spread over several MLP layers",
        kind="weights",
        batched=True,
        continual=True,
        needs={"statistics", "gradients", "subject"},
        config=MemitConfig,
        paper="Meng et al., 2023, arXiv:2210.07229",
    )


@hookimpl
def compute_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    config: MemitConfig,
    previous: "Sequence[Delta]",
    weights: "Weights",
    cache: "TensorCache",
    progress: "Progress",
) -> "Delta":
    """Compute the updates that write all facts of the batch."""
    from kedit_memit._memit import memit

    return memit(model, tokenizer, batch, config, previous, weights, cache, progress)


@hookimpl
def apply_delta(delta: "Delta", weights: "Weights") -> "Applied":
    """Write the updates with the kernel of the family; on a CPU to the bits that core writes."""
    from kedit_locate.writing_kernels import low_rank_write

    return weights.add(delta, write=low_rank_write)
