"""The options of the lab's metrics."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from attrs import frozen

from kedit_core.errors import ConfigError, did_you_mean
from kedit_lab.metric_names import METRICS


@frozen
class _Option:
    """What an option may be, in words and as a test."""

    says: str
    fits: Callable[[Any], bool]


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and value.count("{}") == 1


_TEMPLATE = {"template": _Option("a text with one {} in it", _is_template)}
_OPTIONS: Mapping[str, Mapping[str, _Option]] = {
    "consistency": {
        "texts": _Option("the path of a file", lambda value: isinstance(value, str | PathLike)),
        "tokens": _Option(
            "a whole number from 1 on", lambda value: type(value) is int and value > 0
        ),
        "seed": _Option(
            "a whole number from 0 on", lambda value: type(value) is int and value >= 0
        ),
    },
    "negation": _TEMPLATE,
    "reversal": _TEMPLATE,
}


def check_options(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """See that the lab's metrics get options that they have, with values that fit.

    Raises:
        ConfigError: one does not.
    """
    problems = []
    for metric in METRICS.keys() & metrics.keys():
        known = _OPTIONS.get(metric, {})
        for name, value in metrics[metric].items():
            if name not in known:
                problems.append(f"{metric} has no option {name!r}{did_you_mean(name, known)}")
            elif not known[name].fits(value):
                problems.append(f"{metric}: {name} must be {known[name].says}, not {value!r}")
    if problems:
        raise ConfigError("metrics", sorted(problems))
