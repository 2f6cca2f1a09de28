"""SERAC: edits in a memory beside the model, for prompts that a trained classifier finds in scope."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit_core import MethodInfo, hookimpl
from kedit_serac.config import SeracConfig

if TYPE_CHECKING:
    import typer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Applied, Delta, EditBatch, Scope, Weights


@hookimpl
def method_info() -> MethodInfo:
    """Say what SERAC is."""
    return MethodInfo(
        name="serac",
        summary="edits in a memory, a trained scope classifier and a counterfactual model",
        kind="side-memory",
        batched=True,
        continual=True,
        removes=True,
        needs={"training"},
        config=SeracConfig,
        paper="Mitchell et al., 2022, arXiv:2206.06520",
    )


@hookimpl
def compute_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    config: SeracConfig,
    previous: "Sequence[Delta]",
    weights: "Weights",
) -> "Delta":
    """Append the edits of the batch to the memory; nothing is trained."""
    from kedit_serac._serac import serac

    return serac(model, tokenizer, batch, config, previous, weights)


@hookimpl
def apply_delta(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    delta: "Delta",
    config: SeracConfig,
) -> "Applied":
    """Let the memory answer for the model where a prompt is in its scope."""
    from kedit_serac._serac import attach

    return attach(model, tokenizer, delta, config)


@hookimpl
def scope_classify(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    delta: "Delta",
    prompts: "Sequence[str]",
) -> "Scope":
    """Say which edit each prompt meets, if any."""
    from kedit_serac._serac import scope

    return scope(model, tokenizer, delta, prompts)


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``kedit serac``."""
    from kedit_serac.commands import serac

    cli.add_typer(serac, name="serac")
