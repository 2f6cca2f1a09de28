"""The journal's part about one cell of a run: a record that a stream writes and goes on from."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from attrs import asdict

from kedit_core.conflicts import Decision
from kedit_core.delta_files import save_deltas
from kedit_core.deltas import Delta, SideMemory
from kedit_core.digests import digest
from kedit_core.errors import JournalError
from kedit_core.journal import Journal
from kedit_core.judgements import Judgement
from kedit_core.limits import Breach
from kedit_core.packing import judgement_of, packed, packed_report, unpacked_breaches
from kedit_core.record import Made, Record
from kedit_core.reports import EvalReport
from kedit_core.request_files import record_of
from kedit_core.requests import EditRequest
from kedit_core.run_files import put, save_original, stored_delta
from kedit_core.run_folder import StoredFile
from kedit_core.run_records import Example
from kedit_core.schedule import Point
from kedit_core.weights import Weights

EVERY = 100
"""Of a growing memory the newest delta is stored, and those of every so many batches."""


class CellJournal(Record):
    """What a journal holds of one cell.

    Attributes:
        batches: how many were made.
        good: how many had been made when the model was last found within its limits.
    """

    def __init__(self, journal: Journal, cell: str, weights: Weights) -> None:
        """Open the part of ``cell``, whose model has ``weights``."""
        self._journal, self._cell, self._weights = journal, cell, weights
        (row,) = journal.rows("SELECT model, requests FROM cells WHERE name = ?", cell)
        self._model: str = row["model"]
        self._requests: list[str] = json.loads(row["requests"] or "[]")
        self._stored: StoredFile | None = None
        (made,) = journal.rows("SELECT count(*) AS n FROM edits WHERE cell = ?", cell)
        (good,) = journal.rows(
            "SELECT max(batches) AS n FROM checks WHERE cell = ? AND breaches = '[]'", cell
        )
        self.batches, self.good = int(made["n"]), int(good["n"] or 0)

    def begin(self, requests: Sequence[EditRequest], decisions: Sequence[Decision]) -> None:
        """Take note of what will be made, in order.

        Raises:
            JournalError: it is not what was noted before.
        """
        names = [request.id for request in requests]
        if not self._requests:
            self._requests = names
            self._set(requests=json.dumps(names), decisions=packed(decisions))
        if names != self._requests:
            raise JournalError(
                str(self._journal.folder.path),
                f"the requests of {self._cell} are not those that it began with; "
                "begin another run for them",
            )

    def history(self) -> dict[int, Delta]:
        """Return the deltas in force by the place of their batch, as far as they are stored.

        Raises:
            JournalError: a file is missing or damaged.
        """
        rows = self._journal.rows(
            "SELECT place, path, checksum, after FROM edits WHERE cell = ? AND in_force AND path != '' "
            "ORDER BY place",
            self._cell,
        )
        return {row["place"]: stored_delta(self._journal, row) for row in rows}

    def keep(self, delta: Delta) -> None:
        """Write the originals that ``delta`` will touch first, then the delta itself.

        Raises:
            JournalError: a file cannot be written.
        """
        for part in delta.weights():
            self._keep_original(part.weight)
        self._stored = put(self._journal, partial(save_deltas, [delta]))

    def add(self, made: Made) -> None:
        """Commit the row of a batch that is in the model now."""
        assert self._stored is not None
        delta, provenance = made.delta, made.delta.provenance
        values = {
            "cell": self._cell,
            "place": made.place,
            "delta": delta.id,
            "parent": made.parent,
            "method": delta.method,
            "version": _version_of(provenance.versions),
            "requests": json.dumps([record_of(request) for request in made.requests]),
            "config": json.dumps(_plain(provenance.config)),
            "seed": provenance.seed,
            "before": json.dumps(dict(made.before)),
            "after": json.dumps(dict(provenance.written)),
            "path": self._stored.path,
            "checksum": self._stored.checksum,
            "seconds": made.seconds,
            "peak_memory": made.peak_memory,
            "made": _now(),
        }
        query = f"INSERT INTO edits ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"  # noqa: S608
        replaced = self._replaced(delta, made.place)
        forget = "UPDATE edits SET path = '', checksum = '' WHERE cell = ? AND place = ?"
        self._journal.write(
            (query, list(values.values())),
            *((forget, (self._cell, row["place"])) for row in replaced),
        )
        self.batches = made.place + 1
        for row in replaced:
            self._drop(row["path"])

    def judgement(self, point: Point) -> Judgement | None:
        """Return the judgement that was made at a point."""
        for row in self._journal.rows(
            "SELECT * FROM judgements WHERE cell = ? AND at = ? AND interval = ?",
            *(self._cell, point.at, point.interval),
        ):
            return judgement_of(row, self._requests)
        return None

    def judged(self, judgement: Judgement) -> None:
        """Commit the row of a judgement."""
        values = (
            *(self._cell, judgement.at, judgement.interval),
            judgement.at - len(judgement.judged),
            packed_report(judgement.report, judgement.judged),
            packed(judgement.breaches),
            _now(),
        )
        names = "cell, at, interval, first, report, breaches, made"
        self._journal.write(
            (f"INSERT INTO judgements ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
        )

    def check(self, at: int) -> tuple[Breach, ...] | None:
        """Return the limits that the model broke after ``at`` requests; None when that was not checked."""
        for row in self._journal.rows(
            "SELECT breaches FROM checks WHERE cell = ? AND at = ?", self._cell, at
        ):
            return unpacked_breaches(row["breaches"])
        return None

    def checked(self, at: int, batches: int, breaches: Sequence[Breach]) -> None:
        """Commit the row of a check of the limits."""
        values = (self._cell, at, batches, packed(breaches))
        self._journal.write(("INSERT INTO checks VALUES (?, ?, ?, ?)", values))
        if not breaches:
            self.good = batches

    def take_out(self, batches: int) -> None:
        """Note that of the batches only the first ``batches`` are in force still."""
        query = "UPDATE edits SET in_force = 0 WHERE cell = ? AND place >= ? AND in_force"
        self._journal.write((query, (self._cell, batches)))

    def end(self, stopped: str) -> None:
        """Note that no edit is left to make, and why when the stream ended early."""
        self._set(stopped=stopped)

    def finish(self, examples: Sequence[Example]) -> None:
        """Keep what the model says after a few prompts, and note that nothing is left to do."""
        self._set(examples=json.dumps([asdict(one) for one in examples]), finished=1)

    def set_before(self, report: EvalReport, requests: Sequence[EditRequest]) -> None:
        """Keep the scores of the unedited model on all requests."""
        self._set(before=packed_report(report, [request.id for request in requests]))

    def _set(self, **values: Any) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        query = f"UPDATE cells SET {columns} WHERE name = ?"  # noqa: S608 - our own names
        self._journal.write((query, (*values.values(), self._cell)))

    def _keep_original(self, weight: str) -> None:
        if self._journal.rows(
            "SELECT 1 FROM originals WHERE model = ? AND weight = ?", self._model, weight
        ):
            return
        base = self._weights.base_of(weight).cpu().contiguous()
        stored = put(self._journal, partial(save_original, weight, base))
        values = (self._model, weight, digest(base), stored.path, stored.checksum)
        self._journal.write(("INSERT INTO originals VALUES (?, ?, ?, ?, ?)", values))

    def _replaced(self, delta: Delta, place: int) -> list[Any]:
        """Return the rows of a memory's earlier deltas that need no file: the new one holds all they hold."""
        if not any(isinstance(part, SideMemory) for part in delta.parts):
            return []
        return self._journal.rows(
            "SELECT place, path FROM edits WHERE cell = ? AND method = ? AND place < ? AND path != '' "
            "AND place % ? != 0 AND place != ?",
            *(self._cell, delta.method, place, EVERY, self.good - 1),
        )

    def _drop(self, path: str) -> None:
        used = "SELECT 1 FROM edits WHERE path = ? UNION SELECT 1 FROM originals WHERE path = ?"
        if not self._journal.rows(used, path, path):
            self._journal.folder.drop(path)


def unused_files(journal: Journal) -> list[str]:
    """Return the files of a run that no row names: left by a crash, or of memories that were replaced."""
    used = {
        row["path"]
        for row in journal.rows("SELECT path FROM edits UNION SELECT path FROM originals")
    }
    return [path for path in journal.folder.files() if path not in used]


def _version_of(versions: Mapping[str, str]) -> str:
    """Return the distribution and version of the method; core's where it brought none."""
    own = [name for name in versions if name not in {"kedit-core", "torch", "transformers"}]
    name = own[0] if own else "kedit-core"
    return f"{name} {versions[name]}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dict))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
