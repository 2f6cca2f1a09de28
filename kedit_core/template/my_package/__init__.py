"""The hooks of my-method; they stay thin, and import torch only when they are called."""

from typing import TYPE_CHECKING

from kedit_core import MethodInfo, hookimpl
from my_package.config import MyMethodConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Delta, EditBatch, Weights


@hookimpl
def method_info() -> MethodInfo:
    """Say what my-method is."""
    return MethodInfo(
        name="my-method",
        summary="say in one line what it does",
        kind="weights",
        batched=False,
        continual=False,
        needs={"gradients", "subject"},
        config=MyMethodConfig,
        paper="",
    )


@hookimpl
def compute_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    config: MyMethodConfig,
    weights: "Weights",
) -> "Delta":
    """Compute what must change for the request of ``batch`` to hold."""
    from my_package._my_method import update_for

    return update_for(model, tokenizer, batch, config, weights)
