"""A judgement: every evaluator is asked, what is missing is counted, time and memory are measured."""

import resource
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.deltas import Delta
from kedit_core.errors import ConfigError, did_you_mean
from kedit_core.metric_options import options_of
from kedit_core.metrics import DEFAULT, KNOWN
from kedit_core.plugins import Plugins
from kedit_core.reports import EvalReport, Score
from kedit_core.requests import EditBatch

Metrics = Mapping[str, Mapping[str, Any]] | Sequence[str]
"""Names of metrics, or names with options."""


def judged(
    plugins: Plugins,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    deltas: Sequence[Delta],
    baseline: Baseline,
    metrics: Metrics | None,
) -> EvalReport:
    """Return what all evaluators say of ``batch``.

    Args:
        plugins: whose ``evaluate`` hooks are asked.
        model: with ``deltas`` in force.
        tokenizer: the model's.
        batch: whole requests.
        deltas: in force, oldest first.
        baseline: of the unedited model.
        metrics: what to compute; None for exact match on all axes.

    Raises:
        ConfigError: nobody knows a metric that was asked for, or an option of it.
    """
    wanted = _wanted(metrics)
    _check_options(wanted)
    known = _known(plugins, wanted)
    started = perf_counter()
    scores: list[Score] = []
    answers = plugins.call_all(
        "evaluate",
        model=model,
        tokenizer=tokenizer,
        batch=batch,
        deltas=deltas,
        baseline=baseline,
        metrics=wanted,
    )
    for found in answers:
        scores += found
    _check_known(wanted, known, scores)
    methods = dict.fromkeys(delta.method for delta in deltas)
    return EvalReport(
        method="+".join(methods),
        step=sum(len(delta.requests) for delta in deltas),
        scores=tuple(scores),
        missing=_missing(wanted, scores, batch),
        seconds=perf_counter() - started,
        peak_memory=peak_memory(model),
    )


def _wanted(metrics: Metrics | None) -> dict[str, Mapping[str, Any]]:
    if metrics is None:
        return {name: {} for name in DEFAULT}
    if isinstance(metrics, Mapping):
        return {name: {} if options is None else options for name, options in metrics.items()}
    return {name: {} for name in ([metrics] if isinstance(metrics, str) else metrics)}


def _check_options(wanted: Mapping[str, Any]) -> None:
    """See that core's metrics get options that they have, with values that fit."""
    problems: list[str] = []
    for metric, options in wanted.items():
        if not isinstance(options, Mapping):
            problems.append(f"the options of {metric!r} are {options!r}, not names with values")
        elif metric in KNOWN:
            known = options_of(metric)
            problems += [
                f"{metric} has no option {name!r}{did_you_mean(name, known)}"
                if name not in known
                else f"{metric}: {name} must be {known[name].says}, not {value!r}"
                for name, value in options.items()
                if name not in known or not known[name].fits(value)
            ]
    if problems:
        raise ConfigError("metrics", problems)


def _known(plugins: Plugins, wanted: Mapping[str, Any]) -> list[str]:
    """Return the names that core and plugins say they know.

    Where nobody could know another, an unknown one is refused here: before the work, not after.
    """
    known = [*KNOWN, *chain.from_iterable(plugins.call_all("metric_names"))]
    if all("metric_names" in row.hooks for row in plugins.rows() if "evaluate" in row.hooks):
        _check_known(wanted, known, ())
    return known


def _check_known(wanted: Mapping[str, Any], known: Sequence[str], scores: Sequence[Score]) -> None:
    found = {score.metric.partition(":")[0] for score in scores}
    unknown = [name for name in wanted if name not in known and name not in found]
    if unknown:
        raise ConfigError(
            "metrics", [f"unknown metric {n!r}{did_you_mean(n, known)}" for n in unknown]
        )


def _missing(
    wanted: Mapping[str, Any], scores: Sequence[Score], batch: EditBatch
) -> dict[str, int]:
    requests = {request.id for request in batch.requests}
    has: dict[str, set[str | None]] = {name: set() for name in wanted}
    for score in scores:
        has.setdefault(score.metric, set()).add(score.request)
    counts = {name: 0 if None in has[name] else len(requests - has[name]) for name in wanted}
    return {name: count for name, count in counts.items() if count > 0}


def peak_memory(model: PreTrainedModel) -> int:
    """Return the most bytes held: on the model's GPU, or else by the process."""
    device = model.device
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
