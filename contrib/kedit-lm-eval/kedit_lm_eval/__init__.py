"""What a model can do in general, through lm-evaluation-harness: the metrics ``ability`` and its change."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kedit_core import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core import Baseline, Score

METRICS: Mapping[str, str] = {
    "ability": (
        "The mean over tasks of lm-evaluation-harness, each of them reported as `ability:<task>`. Options: "
        "`tasks` (needed), `include`, a folder of task files, `limit`, `batch` and `measure`."
    ),
    "ability.change": "The same, less what the unedited model scores.",
}


@hookimpl
def metric_names() -> Mapping[str, str]:
    """Say which metrics there are."""
    return METRICS


@hookimpl
def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    baseline: "Baseline",
    metrics: Mapping[str, Mapping[str, Any]],
) -> "Iterable[Score] | None":
    """Run the tasks that were asked for."""
    if not any(name in METRICS for name in metrics):
        return None
    from kedit_lm_eval.ability import judge

    return judge(model, tokenizer, baseline, metrics)
