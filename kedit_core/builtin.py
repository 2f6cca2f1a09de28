"""Core's own plugin: weights are written, models opened, requests read and edits judged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kedit_core.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core.baseline import Baseline
    from kedit_core.deltas import Delta
    from kedit_core.errors import RequestError
    from kedit_core.reports import Applied, Score
    from kedit_core.requests import EditBatch, EditRequest
    from kedit_core.weights import Weights


@hookimpl(trylast=True)
def apply_delta(delta: "Delta", weights: "Weights") -> "Applied":
    """Write a delta of kind *weights*."""
    return weights.add(delta)


@hookimpl(trylast=True)
def open_model(
    source: str, dtype: "torch.dtype | None", device: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Open a local folder or a hub id with transformers."""
    from kedit_core.models import open_with_transformers

    return open_with_transformers(source, dtype, device)


@hookimpl(trylast=True)
def read_requests(source: str) -> "Iterable[EditRequest | RequestError]":
    """Read a file of JSON lines."""
    from kedit_core.request_files import read_json_lines

    return read_json_lines(source)


@hookimpl(trylast=True)
def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch: "EditBatch",
    baseline: "Baseline",
    metrics: Mapping[str, Mapping[str, Any]],
    deltas: "Sequence[Delta]",
) -> "Iterable[Score]":
    """Compute the metrics that core knows."""
    from kedit_core.metrics import judge

    return judge(model, tokenizer, batch, deltas, baseline, metrics)
