"""Plans: which methods are compared, on which model, in which schedules and orders; a TOML file says it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from kedit_core.config import load_config, merged, read_mapping
from kedit_core.conflicts import Policy
from kedit_core.errors import ConfigError
from kedit_core.limits import Limits
from kedit_core.schedule import Schedule

_WHERE = "plan"


@frozen(kw_only=True)
class PlannedMethod:
    """A method of a plan, or several settings of it.

    Attributes:
        name: of the method.
        label: what tables call it; by default its name.
        config: its settings, tables inside tables.
        grid: setting, with dots for tables inside tables, to the values that it takes in turn.
    """

    name: str = field(default="")
    label: str = ""
    config: Mapping[str, Any] = field(factory=dict)
    grid: Mapping[str, list[Any]] = field(factory=dict)

    @name.validator
    def _is_given(self, _: object, value: str) -> None:
        if not value:
            raise ConfigError(_WHERE, ["a [[method]] has no name"])

    def settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each label with the settings that it stands for."""
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            label = "+".join((self.label or self.name, *(f"{k}={v}" for k, v in chosen.items())))
            above: dict[str, Any] = {}
            for name, value in chosen.items():
                above = merged(above, _nested(name, value))
            yield label, merged(self.config, above)


@frozen(kw_only=True)
class Cell:
    """One stream of a plan.

    Attributes:
        name: unique in its plan.
        model: as the plan names it.
        method: its name.
        label: what tables call the method with these settings.
        config: its settings, as the plan gives them.
        schedule: how many at a time, when judged, on what.
        seed: of the order of the requests; None for the order of their source.
    """

    name: str
    model: str
    method: str
    label: str
    config: Mapping[str, Any]
    schedule: Schedule
    seed: int | None


@frozen(kw_only=True)
class Plan:
    """What a run shall do: every model with every method, schedule and seed.

    Attributes:
        model: what ``kedit edit`` takes, one or several.
        requests: a file or a name, as ``kedit edit`` takes it.
        limit: take only the first so many requests.
        skip_bad: leave out records that cannot be read, and count them.
        method: the methods.
        schedule: how many edits at a time, when they are judged, on what, whether they stay.
        seeds: of orders of the requests; without any they come in the order of their source.
        metrics: names with their options; by default exact match on all axes.
        conflicts: what happens to requests that cannot all hold.
        limits: what a stream may cost.
        chat: prompts are rendered through the chat template.
        dtype: to load the model in; empty for its own.
        device: to load the model on; empty for the default.
    """

    model: tuple[str, ...] = ()
    requests: str = ""
    limit: int | None = None
    skip_bad: bool = False
    method: tuple[PlannedMethod, ...] = ()
    schedule: tuple[Schedule, ...] = (Schedule(),)
    seeds: tuple[int, ...] = ()
    metrics: Mapping[str, Mapping[str, Any]] | None = None
    conflicts: Policy = "error"
    limits: Limits | None = None
    chat: bool = False
    dtype: str = ""
    device: str = ""

    def cells(self) -> tuple[Cell, ...]:
        """Return all streams of the plan, in order."""
        found = []
        for model, method, schedule, seed in itertools.product(
            self.model, self.method, self.schedule, self.seeds or (None,)
        ):
            for label, config in method.settings():
                found.append(
                    Cell(
                        name=self._name(model, label, schedule, seed),
                        model=model,
                        method=method.name,
                        label=label,
                        config=config,
                        schedule=schedule,
                        seed=seed,
                    )
                )
        names = [cell.name for cell in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(_WHERE, [f"{twice[0]!r} is planned twice; give it a label"])
        return tuple(found)

    def _name(self, model: str, label: str, schedule: Schedule, seed: int | None) -> str:
        parts = [label]
        if len(self.model) > 1:
            parts.insert(0, model)
        if len(self.schedule) > 1:
            parts.append(described(schedule))
        if seed is not None:
            parts.append(f"seed={seed}")
        return "+".join(parts)


def described(schedule: Schedule) -> str:
    """Return a schedule in a few letters, the same for no other."""
    when = "stages=" + "-".join(map(str, schedule.stages)) if schedule.stages else ""
    when = when or "T=" + "-".join(map(str, schedule.intervals or ("end",)))
    size = "" if schedule.batch_size == 1 else f"+batch={schedule.batch_size}"
    return f"{when}{size}+on={schedule.evaluate_on}{'' if schedule.keep else '+restored'}"


def read_plan(path: str | Path) -> Plan:
    """Return the plan that a TOML or JSON file describes.

    Raises:
        ConfigError: the file cannot be read, or says something that fits no plan.
    """
    return plan_from(read_mapping(Path(path)), where=str(path))


def plan_from(found: Mapping[str, Any], *, where: str = _WHERE) -> Plan:
    """Return the plan that a mapping describes; one model, method or schedule need not stand in a list.

    Raises:
        ConfigError: it fits no plan.
    """
    table = dict(found)
    for name in ("model", "method", "schedule", "seeds"):
        if name in table and not isinstance(table[name], list | tuple):
            table[name] = [table[name]]
    methods = table.get("method", ())
    table["method"] = [{"name": one} if isinstance(one, str) else one for one in methods]
    metrics = table.get("metrics")
    if isinstance(metrics, str | list | tuple):
        names = [metrics] if isinstance(metrics, str) else metrics
        table["metrics"] = {str(name): {} for name in names}
    plan = load_config(Plan, table, where=where)
    missing = [name for name in ("model", "requests", "method") if not getattr(plan, name)]
    if missing:
        raise ConfigError(where, [f"says no {name}" for name in missing])
    plan.cells()
    return plan


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values; ``plan_from`` reads them back."""
    found: dict[str, Any] = _plain(asdict(plan))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found
