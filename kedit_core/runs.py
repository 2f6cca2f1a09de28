"""Runs: a plan carried out, cell by cell, in a folder that remembers it."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from attrs import asdict

from kedit_core.cell_journal import CellJournal
from kedit_core.config import load_config
from kedit_core.editor import Editor
from kedit_core.errors import ConfigError, JournalError
from kedit_core.examples import examples_of
from kedit_core.journal import Journal, create_journal, open_journal
from kedit_core.judgements import Judgement
from kedit_core.machine import machine, versions
from kedit_core.opening import editor_of
from kedit_core.plans import Cell, Plan, as_json
from kedit_core.plugins import Plugins
from kedit_core.progress import Progress
from kedit_core.reports import EvalReport
from kedit_core.requests import EditRequest


class Watcher:
    """Sees a run go; this one looks away, the command line's draws a table."""

    def begin(self, cell: Cell, requests: int, made: int) -> None:
        """See a cell begin, with so many requests, of which so many were made before a crash."""

    def judged(self, cell: Cell, judgement: Judgement) -> None:
        """See a judgement, one that was made before a crash too."""

    def end(self, cell: Cell, stopped: str) -> None:
        """See a cell end, and why when it ended early."""


class Run:
    """A plan being carried out.

    What stops it, a crash included, loses nothing that was committed: ``resume=True`` goes on from there
    and ends with the same bits.
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | Path,
        *,
        resume: bool = False,
        plugins: Plugins | None = None,
        progress: Progress | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """Prepare to carry out ``plan``.

        Args:
            plan: what to do.
            folder: where the run is kept; it must not hold one yet, unless ``resume``.
            resume: go on with the run that is there.
            plugins: by default all installed ones.
            progress: by default silent.
            watcher: sees the run go.
        """
        self.plan, self.folder, self._resume = plan, Path(folder), resume
        self._plugins = plugins if plugins is not None else Plugins.installed()
        self._progress = progress if progress is not None else Progress()
        self._watcher = watcher if watcher is not None else Watcher()
        self._before: dict[frozenset[str], EvalReport] = {}

    def carry_out(self, requests: Sequence[EditRequest]) -> None:
        """Make every stream of the plan.

        Args:
            requests: of the plan's source, in its order.

        Raises:
            JournalError: the folder holds a run already, or one of another plan, or cannot be written.
            RunBusyError: another process is at work there.
            KeditError: whatever a stream finds wrong.
        """
        cells = self.plan.cells()
        self._check(cells)
        with self._journal(cells) as journal:
            done = {row["name"] for row in journal.rows("SELECT name FROM cells WHERE finished")}
            for model, own in groupby(cells, key=lambda cell: cell.model):
                left = list(own)
                if all(cell.name in done for cell in left):
                    continue
                editor = self._open(model)
                for cell in left:
                    if cell.name not in done:
                        self._make(editor, cell, journal, requests)
                editor.close()

    def _check(self, cells: Sequence[Cell]) -> None:
        """See before the first edit that every method can do what is planned for it."""
        for cell in cells:
            info = self._plugins.info(cell.method)
            load_config(info.config, cell.config, where=f"config of {cell.label}")
            if cell.schedule.batch_size != 1 and not info.batched:
                raise ConfigError(
                    cell.name,
                    [f"method {cell.method!r} takes one request at a time: batch_size must be 1"],
                )

    @contextmanager
    def _journal(self, cells: Sequence[Cell]) -> Iterator[Journal]:
        if self._resume:
            journal = open_journal(self.folder)
        else:
            journal = create_journal(self.folder, self._settings(cells), [_row(c) for c in cells])
        try:
            if self._resume and journal.setting("plan") != as_json(self.plan):
                raise JournalError(
                    str(self.folder),
                    "was begun with another plan; choose another folder for this one",
                )
            yield journal
        finally:
            journal.close()

    def _settings(self, cells: Sequence[Cell]) -> dict[str, Any]:
        methods = {cell.method for cell in cells}
        rows = [row for row in self._plugins.rows() if row.name in methods and row.package]
        packages = ["kedit-core", *(row.package.partition(" ")[0] for row in rows)]
        return {
            "plan": as_json(self.plan),
            "versions": versions([*packages, "torch", "transformers"]),
            "machine": machine(self.plan.device or "cpu"),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _open(self, model: str) -> Editor:
        self._before.clear()
        return editor_of(self.plan, model, plugins=self._plugins, progress=self._progress)

    def _make(
        self, editor: Editor, cell: Cell, journal: Journal, requests: Sequence[EditRequest]
    ) -> None:
        """Make one stream and leave the model unedited."""
        record = CellJournal(journal, cell.name, editor.weights)
        stream = editor.stream(
            in_order(requests, cell.seed),
            cell.schedule,
            metrics=self.plan.metrics,
            method=cell.method,
            config=cell.config or None,
            conflicts=self.plan.conflicts,
            limits=self.plan.limits,
            record=record,
        )
        self._watcher.begin(cell, len(stream.requests), stream.made)
        if not journal.rows("SELECT 1 FROM cells WHERE name = ? AND before IS NOT NULL", cell.name):
            names = frozenset(request.id for request in stream.requests)
            if names not in self._before:
                self._before[names] = stream.before()
            record.set_before(self._before[names], stream.requests)
        for judgement in stream:
            self._watcher.judged(cell, judgement)
        kept = stream.requests if cell.schedule.keep else ()
        record.finish(examples_of(editor, kept))
        self._watcher.end(cell, stream.stopped)
        editor.go_to(())


def in_order(requests: Sequence[EditRequest], seed: int | None) -> list[EditRequest]:
    """Return the requests in the order that a seed stands for; None for their own."""
    order = list(requests)
    if seed is not None:
        random.Random(seed).shuffle(order)  # noqa: S311 - an order, no secret
    return order


def _row(cell: Cell) -> Mapping[str, Any]:
    return {
        "name": cell.name,
        "model": cell.model,
        "method": cell.method,
        "label": cell.label,
        "config": json.dumps(dict(cell.config)),
        "schedule": json.dumps(asdict(cell.schedule)),
        "seed": cell.seed,
    }
