"""WISE: edits in a side memory of one projection, for prompts that its activations route to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit_core import MethodInfo, hookimpl
from kedit_wise.config import WiseConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Applied, Delta, EditBatch, Scope, TensorCache, Weights
    from kedit_core.progress import Progress


@hookimpl
def method_info() -> MethodInfo:
    """Say what WISE is."""
    return MethodInfo(
        name="wise",
        summary="edits in a side memory of one projection, routed by its own activations",
        kind="side-memory",
        batched=True,
        continual=True,
        needs={"statistics", "gradients"},
        config=WiseConfig,
        paper="Wang et al., 2024, arXiv:2405.14768",
    )


@hookimpl
def compute_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    config: WiseConfig,
    previous: "Sequence[Delta]",
    weights: "Weights",
    cache: "TensorCache",
    progress: "Progress",
) -> "Delta":
    """Write the edits of the batch into the newest shard of the memory."""
    from kedit_wise._wise import wise

    return wise(model, tokenizer, batch, config, previous, weights, cache, progress)


@hookimpl
def apply_delta(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", delta: "Delta"
) -> "Applied":
    """Let the memory speak where a prompt stirs it."""
    from kedit_wise.beside import Beside

    return Beside(model, tokenizer, delta).attach()


@hookimpl
def scope_classify(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    delta: "Delta",
    prompts: "Sequence[str]",
) -> "Scope":
    """Say which edit each prompt meets, if any."""
    from kedit_wise.beside import scope

    return scope(model, tokenizer, delta, prompts)
