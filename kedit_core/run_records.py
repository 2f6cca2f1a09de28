"""What a run has done, as values: what its journal holds, for reports and programs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from kedit_core.conflicts import Decision
from kedit_core.judgements import Judgement
from kedit_core.reports import EvalReport
from kedit_core.requests import EditRequest
from kedit_core.schedule import Schedule


def _many(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(values)


def _count(values: tuple[Any, ...]) -> str:
    return f"<{len(values)}>"


@frozen(kw_only=True)
class EditRecord:
    """One applied batch.

    Attributes:
        place: of the batch in its cell, from 0.
        delta: id of its delta.
        parent: id of the delta that was the newest in force before; None for the first.
        method: its name.
        version: distribution and version of the method.
        requests: what was asked, probes included.
        before: per touched parameter its digest before the edit.
        after: per touched parameter its digest after it.
        path: of the delta file, below the run's folder; empty where the delta is made again by replay.
        checksum: sha256 of that file.
        seconds: that the edit took.
        peak_memory: bytes at the most.
        in_force: it is in the model still.
    """

    place: int
    delta: str
    parent: str | None
    method: str
    version: str
    requests: tuple[EditRequest, ...] = field(converter=_many, repr=_count)
    before: Mapping[str, str]
    after: Mapping[str, str]
    path: str
    checksum: str
    seconds: float
    peak_memory: int
    in_force: bool


@frozen(kw_only=True)
class Example:
    """What the model says after one prompt, unedited and at the end of its cell.

    Attributes:
        request: id of the edit it belongs to.
        kind: the edit's own prompt, one of its paraphrases, or a neighbour that should stay as it is.
        prompt: as asked.
        wanted: the answer that is right after the edit.
        before: what the unedited model says.
        after: what the edited one says.
    """

    request: str
    kind: Literal["edit", "paraphrase", "neighbour"]
    prompt: str
    wanted: str
    before: str
    after: str


@frozen(kw_only=True)
class CellRecord:
    """One way of editing of a plan: a model, a method with its settings, a schedule and a seed.

    Attributes:
        name: unique in its run.
        model: as the plan names it.
        method: its name.
        label: what a table calls the method with these settings.
        config: of the method, as the plan gives it.
        schedule: how many at a time, when judged, on what.
        seed: of the order of the requests; None for the order of their source.
        requests: how many are asked for, after conflicts were settled.
        before: scores of the unedited model on all requests.
        edits: one for each applied batch, oldest first.
        judgements: in the order in which they were made.
        decisions: how conflicts were settled.
        examples: what the model said before and says after a few edits.
        stopped: why the cell ended early; empty where it did not.
        finished: nothing is left to do.
    """

    name: str
    model: str
    method: str
    label: str
    config: Mapping[str, Any]
    schedule: Schedule
    seed: int | None
    requests: int
    before: EvalReport | None = None
    edits: tuple[EditRecord, ...] = field(default=(), converter=_many, repr=_count)
    judgements: tuple[Judgement, ...] = field(default=(), converter=_many, repr=_count)
    decisions: tuple[Decision, ...] = field(default=(), converter=_many)
    examples: tuple[Example, ...] = field(default=(), converter=_many, repr=_count)
    stopped: str = ""
    finished: bool = False


@frozen(kw_only=True)
class RunRecord:
    """A run: what was planned and what came of it.

    Attributes:
        folder: of the run.
        plan: as it was given.
        versions: of kedit-core, the plugins, torch and transformers.
        machine: processor, number of cores and of threads, device and system, as words.
        started: date and time, ISO 8601.
        cells: in the plan's order.
    """

    folder: Path
    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    started: str
    cells: tuple[CellRecord, ...] = field(converter=_many)
