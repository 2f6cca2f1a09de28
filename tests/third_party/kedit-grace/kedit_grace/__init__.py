"""GRACE: edits in a codebook beside one layer; the weights stay as they are."""

from typing import Any

from attrs import field, frozen, validators

from kedit_core import MethodInfo, hookimpl


@frozen(kw_only=True)
class GraceConfig:
    """Settings of GRACE.

    Attributes:
        layer: beside which the codebook stands; None takes one two thirds of the way up.
        radius: of a new entry, as a share of the length of its key; a wider one takes in other wordings,
            and sooner or later neighbours.
        steps: of the search for a value, at the most.
    """

    layer: int | None = None
    radius: float = field(default=0.01, validator=validators.gt(0))
    steps: int = field(default=100, validator=validators.ge(1))


@hookimpl
def method_info() -> MethodInfo:
    """Say what GRACE is."""
    return MethodInfo(
        name="grace",
        summary="edits in a codebook beside one layer",
        kind="side-memory",
        batched=True,
        continual=True,
        needs={"gradients"},
        config=GraceConfig,
        paper="Hartvigsen et al., 2023, arXiv:2211.11031",
    )


@hookimpl
def compute_delta(
    model: Any, tokenizer: Any, batch: Any, config: Any, previous: Any, weights: Any
) -> Any:
    """Add an entry per request to the codebook."""
    from kedit_grace._grace import grace

    return grace(model, tokenizer, batch, config, previous, weights)


@hookimpl
def apply_delta(model: Any, delta: Any) -> Any:
    """Put the codebook beside its layer."""
    from kedit_grace._grace import attach

    return attach(model, delta)


@hookimpl
def scope_classify(model: Any, tokenizer: Any, delta: Any, prompts: Any) -> Any:
    """Say which entry each prompt meets."""
    from kedit_grace._grace import scope

    return scope(model, tokenizer, delta, prompts)
