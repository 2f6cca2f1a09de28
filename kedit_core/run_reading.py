"""Reading what a run has done from its journal, while it goes on too."""

import json
from pathlib import Path
from typing import Any

from kedit_core.cell_journal import judgement_of
from kedit_core.config import load_config
from kedit_core.journal import Journal, reading
from kedit_core.packing import unpacked_decisions, unpacked_report
from kedit_core.request_files import request_from
from kedit_core.run_records import CellRecord, EditRecord, Example, RunRecord
from kedit_core.schedule import Schedule


def read_run(folder: str | Path) -> RunRecord:
    """Return what a run has done so far.

    Args:
        folder: of the run.

    Raises:
        JournalError: there is no run, or its journal cannot be read.
    """
    with reading(folder) as journal:
        return RunRecord(
            folder=Path(folder),
            plan=journal.setting("plan"),
            versions=journal.setting("versions"),
            machine=journal.setting("machine"),
            started=journal.setting("started"),
            cells=[
                _cell(journal, row) for row in journal.rows("SELECT * FROM cells ORDER BY place")
            ],
        )


def _cell(journal: Journal, row: Any) -> CellRecord:
    name = row["name"]
    requests: list[str] = json.loads(row["requests"] or "[]")
    judged = journal.rows("SELECT * FROM judgements WHERE cell = ? ORDER BY id", name)
    edits = journal.rows("SELECT * FROM edits WHERE cell = ? ORDER BY place", name)
    return CellRecord(
        name=name,
        model=row["model"],
        method=row["method"],
        label=row["label"],
        config=json.loads(row["config"]),
        schedule=load_config(Schedule, json.loads(row["schedule"]), where="schedule"),
        seed=row["seed"],
        requests=len(requests),
        before=None if row["before"] is None else unpacked_report(row["before"], requests),
        edits=[edit_of(one) for one in edits],
        judgements=[judgement_of(one, requests) for one in judged],
        decisions=unpacked_decisions(row["decisions"]),
        examples=[Example(**one) for one in json.loads(row["examples"] or "[]")],
        stopped=row["stopped"] or "",
        finished=bool(row["finished"]),
    )


def edit_of(row: Any) -> EditRecord:
    """Return the record of a row of the table ``edits``."""
    return EditRecord(
        place=row["place"],
        delta=row["delta"],
        parent=row["parent"],
        method=row["method"],
        version=row["version"],
        requests=[request_from(one) for one in json.loads(row["requests"])],
        before=json.loads(row["before"]),
        after=json.loads(row["after"]),
        path=row["path"],
        checksum=row["checksum"],
        seconds=row["seconds"],
        peak_memory=row["peak_memory"],
        in_force=bool(row["in_force"]),
    )
