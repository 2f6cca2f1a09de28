"""The lab: the field's data sets and metrics, and a report to look at."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kedit_core import hookimpl
from kedit_lab.metric_names import METRICS

if TYPE_CHECKING:
    import typer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Delta, EditBatch, EditRequest, Score
    from kedit_core.errors import RequestError


@hookimpl
def read_requests(source: str) -> "Iterable[EditRequest | RequestError] | None":
    """Read ``SCHEMA:FILE`` and ``SCHEMA:hf://OWNER/NAME``, and files whose schema shows."""
    from kedit_lab.reading import read

    return read(source)


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


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``kedit lab``."""
    from kedit_lab.commands import lab

    cli.add_typer(lab, name="lab")
