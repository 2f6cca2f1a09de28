"""The options of core's metrics, and what each may be."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from attrs import frozen


@frozen
class Option:
    """What an option may be, in words and as a test."""

    says: str
    fits: Callable[[Any], bool]


def _at_least(least: int) -> Option:
    return Option(
        f"a whole number from {least} on", lambda value: type(value) is int and value >= least
    )


_PROBED = {"known": Option("true or false", lambda value: isinstance(value, bool))}
_OWN: Mapping[str, Mapping[str, Option]] = {
    "contains": {**_PROBED, "tokens": _at_least(1)},
    "fluency": {"tokens": _at_least(1), "seed": _at_least(0)},
    "perplexity": {
        "text": Option("the path of a file", lambda value: isinstance(value, str | PathLike)),
        "window": _at_least(2),
    },
    "drift": {},
}


def options_of(metric: str) -> Mapping[str, Option]:
    """Return the options that one of core's metrics has, by name."""
    return _OWN.get(metric.rpartition(".")[2], _PROBED)
