"""Tasks of lm-evaluation-harness on the model that is being edited, in memory."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from attrs import frozen
from transformers import PreTrainedTokenizerBase

from kedit_core import Baseline, KeditError, Score
from kedit_core.errors import ConfigError, did_you_mean
from kedit_lm_eval.tasks import Asked, asked_of

_MISSING = "ability needs lm-evaluation-harness: pip install kedit-lm-eval[harness]"
_SEED = 0


@frozen(kw_only=True)
class _Run:
    """Everything that a result depends on but the model."""

    asked: Asked
    tokenizer: PreTrainedTokenizerBase


def judge(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    baseline: Baseline,
    metrics: Mapping[str, Mapping[str, Any]],
) -> Iterator[Score]:
    """Yield the scores of ``ability`` and ``ability.change`` that were asked for.

    Raises:
        ConfigError: an option or a task is unknown or does not fit.
        KeditError: the harness is not installed.
    """
    for metric in ("ability", "ability.change"):
        if metric in metrics:
            run = _Run(asked=asked_of(metric, metrics[metric]), tokenizer=tokenizer)
            values = dict(_results(model, run))
            if metric == "ability.change":
                before = _before(baseline, run)
                values = {task: value - before[task] for task, value in values.items()}
            yield Score(metric=metric, value=sum(values.values()) / len(values))
            for task, value in values.items():
                yield Score(metric=f"{metric}:{task}", value=value)


def _before(baseline: Baseline, run: _Run) -> Mapping[str, float]:
    """Return what the unedited model scores in each task."""
    return baseline.value((__name__, run.asked), lambda model: dict(_results(model, run)))


def _results(model: Any, run: _Run) -> Iterator[tuple[str, float]]:
    """Yield each task with what the model scores in it."""
    asked = run.asked
    with _quiet():
        try:
            from lm_eval import evaluator
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager, get_task_dict
        except ImportError as error:
            raise KeditError(f"{_MISSING} ({error})") from None
        manager = TaskManager(include_path=asked.include, include_defaults=False)
        if set(asked.tasks) - set(manager.all_tasks):
            manager = TaskManager(include_path=asked.include)
        unknown = [task for task in asked.tasks if task not in manager.all_tasks]
        if unknown:
            names = manager.all_tasks
            raise ConfigError(
                "metrics", [f"ability: unknown task {n!r}{did_you_mean(n, names)}" for n in unknown]
            )
        found = get_task_dict(list(asked.tasks), manager)
        for task in _single(found):
            task.set_fewshot_seed(seed=_SEED)
        reader = HFLM(
            pretrained=model, tokenizer=copy.deepcopy(run.tokenizer), batch_size=asked.batch
        )
        said = evaluator.evaluate(
            lm=reader, task_dict=found, limit=asked.limit, bootstrap_iters=0, log_samples=False
        )
    for task in asked.tasks:
        yield task, _value(task, said["results"][task], asked.measure)


def _single(found: Mapping[Any, Any]) -> Iterator[Any]:
    """Yield the tasks of nested groups."""
    for one in found.values():
        if isinstance(one, Mapping):
            yield from _single(one)
        else:
            yield one


def _value(task: str, result: Mapping[str, Any], measure: str | None) -> float:
    """Return one measure of a task; the harness names it with the filter of its answers behind a comma."""
    values = {
        name.partition(",")[0]: value
        for name, value in result.items()
        if isinstance(value, float | int) and "," in name and "_stderr" not in name
    }
    wanted = next(iter(values), None) if measure is None else measure
    if wanted not in values:
        known = ", ".join(values) or "none"
        raise ConfigError("metrics", [f"ability: {task} has no measure {wanted!r} ({known})"])
    return float(values[wanted])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the harness prints, warns of and logs to itself."""
    log = logging.getLogger("lm_eval")
    level = log.level
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        stack.callback(log.setLevel, level)
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        yield
