"""What is asked of the harness, read from a metric's options."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.errors import ConfigError, did_you_mean

_BATCH = 8


@frozen(kw_only=True)
class Asked:
    """Tasks and how to run them.

    Attributes:
        tasks: names of the harness.
        include: a folder of task files, or None.
        limit: questions of each task, or None for all.
        batch: questions at a time.
        measure: which of a task's measures counts; None for the first that it lists.
    """

    tasks: tuple[str, ...]
    include: str | None = None
    limit: int | None = None
    batch: int = _BATCH
    measure: str | None = None


def asked_of(metric: str, options: Mapping[str, Any]) -> Asked:
    """Return what the options of a metric ask for.

    Raises:
        ConfigError: an option is unknown, does not fit, or no task is named.
    """
    problems = [
        f"{metric} has no option {name!r}{did_you_mean(name, _OPTIONS)}"
        if name not in _OPTIONS
        else f"{metric}: {name} must be {_OPTIONS[name][0]}, not {value!r}"
        for name, value in options.items()
        if name not in _OPTIONS or not _OPTIONS[name][1](value)
    ]
    if not options.get("tasks") and not problems:
        problems = [f"{metric} needs tasks; pass {metric}: {{tasks: [NAME, …]}}"]
    if problems:
        raise ConfigError("metrics", problems)
    tasks = options["tasks"]
    names = tasks.split() if isinstance(tasks, str) else tasks
    include = options.get("include")
    return Asked(
        tasks=tuple(dict.fromkeys(names)),
        include=None if include is None else str(include),
        limit=options.get("limit"),
        batch=options.get("batch", _BATCH),
        measure=options.get("measure"),
    )


def _are_names(value: Any) -> bool:
    names = value.split() if isinstance(value, str) else value
    return (
        isinstance(names, list | tuple)
        and len(names) > 0
        and all(isinstance(name, str) and name for name in names)
    )


def _is_folder(value: Any) -> bool:
    return isinstance(value, str | PathLike) and Path(value).is_dir()


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


_COUNT = ("a whole number from 1 on", _is_count)
_OPTIONS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "tasks": ("names of tasks, a list or joined by blanks", _are_names),
    "include": ("a folder", _is_folder),
    "limit": _COUNT,
    "batch": _COUNT,
    "measure": ("a name", lambda value: isinstance(value, str) and bool(value)),
}
