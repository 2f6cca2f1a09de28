"""Checks of a run's journal and files: that each says what the others say."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import field, frozen

from kedit_core.errors import JournalError, KeditError
from kedit_core.journal import Journal
from kedit_core.packing import judgement_of
from kedit_core.request_files import request_from
from kedit_core.run_files import stored_delta, stored_original
from kedit_core.run_reading import is_memory


def _sentences(problems: Sequence[str]) -> tuple[str, ...]:
    return tuple(problem for problem in problems if problem)


@frozen(kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: ``database``, ``deltas``, ``parents``, ``judgements``, ``originals``, ``model`` or ``edits``.
        about: the cell or the model that it is about; empty for the whole run.
        found: what was seen, in a few words.
        problems: a sentence for everything that is wrong; none when all is well.
    """

    what: str
    about: str = ""
    found: str
    problems: tuple[str, ...] = field(default=(), converter=_sentences)

    @property
    def passed(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.problems


def check_database(journal: Journal) -> Check:
    """See that the database is whole, and that its tables agree."""
    try:
        said = [row[0] for row in journal.rows("PRAGMA integrity_check")]
        problems = [one for one in said if one != "ok"]
        problems += [
            f"a row of {row['table']} names a row of {row['parent']} that is not there"
            for row in journal.rows("PRAGMA foreign_key_check")
        ]
    except JournalError as error:
        problems = [str(error)]
    return Check(what="database", found="whole, its tables agree", problems=problems)


def check_cell(journal: Journal, cell: str) -> Iterator[Check]:
    """Yield the checks of the rows of a cell, and of their files."""
    rows = journal.rows("SELECT * FROM edits WHERE cell = ? ORDER BY place", cell)
    for what, check in (("deltas", _deltas), ("parents", _parents), ("judgements", _judgements)):
        try:
            yield check(journal, cell, rows)
        except (KeditError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"its rows cannot be read ({error})"
            yield Check(what=what, about=cell, found="", problems=[problem])


def check_originals(journal: Journal) -> Check:
    """See that the original of every edited weight is there, whole, and has the digest of its row."""
    rows = journal.rows("SELECT * FROM originals ORDER BY model, weight")
    problems = [_original_problem(journal, row) for row in rows]
    kept = {(row["model"], row["weight"]) for row in rows}
    query = "SELECT model, after FROM edits JOIN cells ON edits.cell = cells.name"
    for model, after in journal.rows(query):
        lost = [name for name in json.loads(after) if (model, name) not in kept]
        problems += [f"the original of {name} of {model} is not kept" for name in lost]
        kept.update((model, name) for name in lost)  # said once
    found = f"{counted(len(rows), 'weight')}, as checksums and digests say"
    return Check(what="originals", found=found, problems=problems)


def counted(number: int, thing: str) -> str:
    """Return "1 row", "2 rows" and so on."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _deltas(journal: Journal, cell: str, rows: Sequence[Any]) -> Check:
    """See that the file of every row is there, whole, and holds the delta of the row."""
    newest = next((row for row in reversed(rows) if row["in_force"]), None)
    memory = is_memory(rows) and any(row["after"] == "{}" for row in rows)
    problems = []
    for row in rows:
        if row["path"]:
            problems.append(_delta_problem(journal, row))
        elif not memory or row is newest:
            problems.append(f"batch {row['place']}: its row names no file")
    stored = sum(1 for row in rows if row["path"])
    replay = f", {len(rows) - stored} made again when needed" if stored < len(rows) else ""
    found = (
        f"{counted(len(rows), 'row')}, {counted(stored, 'file')} as checksums and ids say{replay}"
    )
    return Check(what="deltas", about=cell, found=found, problems=problems)


def _delta_problem(journal: Journal, row: Any) -> str:
    try:
        delta = stored_delta(journal, row)
    except JournalError as error:
        return f"batch {row['place']}: {error}"
    asked = set(_asked(row))
    if delta.id != row["delta"]:
        return f"batch {row['place']}: {row['path']} holds delta {delta.id}, its row says {row['delta']}"
    if delta.method != row["method"] or not asked <= {one.id for one in delta.requests}:
        return f"batch {row['place']}: {row['path']} holds another edit than its row says"
    return ""


def _original_problem(journal: Journal, row: Any) -> str:
    try:
        stored_original(journal, row)
    except JournalError as error:
        return f"{row['weight']}: {error}"
    return ""


def _parents(journal: Journal, cell: str, rows: Sequence[Any]) -> Check:
    """See that every batch follows the one before it, and begins with the weights that this one left."""
    (found,) = journal.rows("SELECT model FROM cells WHERE name = ?", cell)
    query = "SELECT weight, digest FROM originals WHERE model = ?"
    left = {row["weight"]: row["digest"] for row in journal.rows(query, found["model"])}
    earlier: list[str | None] = [None]
    problems, whole = [], True
    for place, row in enumerate(rows):
        if row["place"] != place:
            problems.append(f"batch {place}: its row is missing")
            break
        if row["parent"] not in (earlier[-1:] if whole else earlier):
            problems.append(f"batch {place}: its parent is {row['parent']}, not {earlier[-1]}")
        before = json.loads(row["before"])
        differing = [name for name, was in before.items() if whole and left.get(name) != was]
        if differing:
            problems.append(f"batch {place}: {differing[0]} was not as the batch before left it")
        # What the weights are once an edit was taken out stands in no row.
        whole = whole and bool(row["in_force"])
        left.update(json.loads(row["after"]))
        earlier.append(row["delta"])
    return Check(
        what="parents", about=cell, found="each batch follows the one before", problems=problems
    )


def _judgements(journal: Journal, cell: str, rows: Sequence[Any]) -> Check:
    """See that only requests of the cell were made and judged, in its order."""
    (found,) = journal.rows("SELECT requests FROM cells WHERE name = ?", cell)
    requests: list[str] = json.loads(found["requests"] or "[]")
    made = [name for row in rows for name in _asked(row)]
    problems = []
    if made != requests[: len(made)]:
        problems.append("the requests of its batches are not those that it began with")
    judged = journal.rows("SELECT * FROM judgements WHERE cell = ? ORDER BY id", cell)
    problems += [_judgement_problem(row, requests, len(made)) for row in judged]
    words = f"{counted(len(judged), 'judgement')} of {counted(len(made), 'request')}"
    return Check(what="judgements", about=cell, found=words, problems=problems)


def _asked(row: Any) -> list[str]:
    """Return the ids of the requests of a batch."""
    return [request_from(one).id for one in json.loads(row["requests"])]


def _judgement_problem(row: Any, requests: Sequence[str], made: int) -> str:
    if not 0 <= row["first"] <= row["at"] <= made:
        return f"the judgement after {row['at']} is of requests that were not made"
    try:
        judgement_of(row, requests)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the judgement after {row['at']} cannot be read ({error})"
    return ""
