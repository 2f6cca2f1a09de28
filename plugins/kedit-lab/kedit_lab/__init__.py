"""The lab: the field's data sets and metrics, and a report to look at."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kedit_core import hookimpl
from kedit_lab.metric_names import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Delta, EditBatch, Score


@hookimpl
def metric_names() -> Mapping[str, str]:
    """Say which metrics the lab knows."""
    return METRICS


@hookimpl
def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    deltas: "Sequence[Delta]",
    metrics: Mapping[str, Mapping[str, Any]],
) -> "Iterable[Score] | None":
    """Compute the lab's metrics."""
    if not any(name in METRICS for name in metrics):
        return None
    from kedit_lab.metrics import judge

    return judge(model, tokenizer, batch, deltas, metrics)
