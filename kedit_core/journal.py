"""The journal of a run: what was done, in SQLite, one row for each applied batch and each judgement.

A delta's file is written first, then the delta goes into the model, and its row is committed last: a
crash leaves a file without a row, which ``kedit doctor`` collects, never a row without its file.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from kedit_core.errors import JournalError
from kedit_core.run_folder import RunFolder

FORMAT = "1"

_SCHEMA = """
CREATE TABLE run (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (
    place INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, model TEXT NOT NULL, method TEXT NOT NULL,
    label TEXT NOT NULL, config TEXT NOT NULL, schedule TEXT NOT NULL, seed INTEGER,
    requests TEXT, decisions TEXT, before TEXT, examples TEXT, stopped TEXT,
    finished INTEGER NOT NULL DEFAULT 0);
CREATE TABLE edits (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cell TEXT NOT NULL REFERENCES cells (name),
    place INTEGER NOT NULL, delta TEXT NOT NULL, parent TEXT, method TEXT NOT NULL, version TEXT NOT NULL,
    requests TEXT NOT NULL, config TEXT NOT NULL, seed INTEGER, before TEXT NOT NULL, after TEXT NOT NULL,
    path TEXT NOT NULL, checksum TEXT NOT NULL, seconds REAL NOT NULL, peak_memory INTEGER NOT NULL,
    made TEXT NOT NULL, in_force INTEGER NOT NULL DEFAULT 1, UNIQUE (cell, place));
CREATE TABLE judgements (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cell TEXT NOT NULL REFERENCES cells (name),
    at INTEGER NOT NULL, interval INTEGER NOT NULL, first INTEGER NOT NULL, report TEXT NOT NULL,
    breaches TEXT NOT NULL, made TEXT NOT NULL, UNIQUE (cell, at, interval));
CREATE TABLE checks (
    cell TEXT NOT NULL REFERENCES cells (name), at INTEGER NOT NULL, batches INTEGER NOT NULL,
    breaches TEXT NOT NULL, PRIMARY KEY (cell, at)) WITHOUT ROWID;
CREATE TABLE originals (
    model TEXT NOT NULL, weight TEXT NOT NULL, digest TEXT NOT NULL, path TEXT NOT NULL,
    checksum TEXT NOT NULL, PRIMARY KEY (model, weight)) WITHOUT ROWID;
"""


class Journal:
    """The journal of a run, open.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder, connection: sqlite3.Connection) -> None:
        """Work on an open database; use :func:`create_journal`, :func:`open_journal` or :func:`reading`."""
        self.folder = folder
        self._connection = connection

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a query.

        Raises:
            JournalError: the journal cannot be read.
        """
        with self._readable():
            return self._connection.execute(query, values).fetchall()

    def write(self, *statements: tuple[str, Sequence[Any]]) -> None:
        """Commit statements, each with its values: all of them or none.

        Raises:
            JournalError: the journal cannot be written.
        """
        with self._readable(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for query, values in statements:
                self._connection.execute(query, values)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let all queries inside the block see the journal as it is at the first of them."""
        with self._readable():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.rollback()

    def setting(self, name: str) -> Any:
        """Return a value of the run itself, such as its ``plan``."""
        (row,) = self.rows("SELECT value FROM run WHERE name = ?", name)
        return json.loads(row["value"])

    def close(self) -> None:
        """Close the journal and let other processes write."""
        self._connection.close()
        self.folder.release()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(
                str(self.folder.database), f"cannot be read or written ({error})"
            ) from None


def create_journal(
    path: str | Path, settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> Journal:
    """Begin a run and return its journal, open for writing.

    Args:
        path: of the run's folder, which is made.
        settings: JSON values of the run by name: ``plan``, ``versions``, ``machine``, ``started``.
        cells: columns of the table ``cells``, in order.

    Raises:
        JournalError: a run is there already, or the folder cannot be written.
        RunBusyError: another process is at work there.
    """
    folder = RunFolder(path)
    folder.acquire()
    try:
        if folder.exists() and _begun(folder):
            raise JournalError(
                str(folder.path),
                "holds a run already; --resume goes on with it, or choose another name",
            )
        connection = _connect(folder, f"{folder.database.absolute().as_uri()}?mode=rwc")
        journal = Journal(folder, connection)
        made = [("INSERT INTO run VALUES (?, ?)", ("format", json.dumps(FORMAT)))]
        made += [("INSERT INTO run VALUES (?, ?)", (k, json.dumps(v))) for k, v in settings.items()]
        for place, cell in enumerate(cells):
            names = ("place", *cell)
            marks = ", ".join("?" * len(names))
            query = f"INSERT INTO cells ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - our own names
            made.append((query, (place, *cell.values())))
        tables = [(one, ()) for one in _SCHEMA.split(";") if one.strip()]
        journal.write(*tables, *made)
    except BaseException:
        folder.release()
        raise
    return journal


def open_journal(path: str | Path) -> Journal:
    """Return the journal of a run that was begun before, open for writing.

    Raises:
        JournalError: there is none, or it is of another format.
        RunBusyError: another process is at work there.
    """
    folder = _existing(path)
    folder.acquire()
    try:
        journal = Journal(
            folder, _connect(folder, f"{folder.database.absolute().as_uri()}?mode=rw")
        )
        _check_format(journal)
    except BaseException:
        folder.release()
        raise
    return journal


@contextmanager
def undisturbed(path: str | Path) -> Iterator[Journal]:
    """Open a journal for reading while nobody writes: its files are what its rows say, until the end.

    Raises:
        JournalError: there is none, or it is of another format.
        RunBusyError: another process is at work there.
    """
    folder = _existing(path)
    with suppress(JournalError):  # where this process cannot write, it cannot take turns either
        folder.acquire()
    try:
        with reading(path) as journal:
            yield journal
    finally:
        folder.release()


@contextmanager
def reading(path: str | Path) -> Iterator[Journal]:
    """Open a journal for reading, beside whoever writes it.

    Raises:
        JournalError: there is none, or it is of another format.
    """
    folder = _existing(path)
    uri = f"{folder.database.absolute().as_uri()}?mode=ro"
    log = folder.database.with_name(f"{folder.database.name}-wal")
    if not os.access(folder.path, os.W_OK) and not log.exists():
        # SQLite would put its shared memory there; where nobody has left a log, nobody is writing.
        uri += "&immutable=1"
    with closing(_open(folder, uri)) as connection:
        journal = Journal(folder, connection)
        _check_format(journal)
        yield journal


def _existing(path: str | Path) -> RunFolder:
    folder = RunFolder(path)
    if not folder.path.exists():
        raise JournalError(str(path), "holds no run: there is no such folder")
    if not folder.exists():
        raise JournalError(str(path), "holds no run")
    return folder


def _begun(folder: RunFolder) -> bool:
    """Tell whether a run was written; a crash before its first commit leaves an empty file."""
    with closing(_open(folder, f"{folder.database.absolute().as_uri()}?mode=ro")) as connection:
        (found,) = Journal(folder, connection).rows("SELECT count(*) FROM sqlite_master")
        return bool(found[0])


def _connect(folder: RunFolder, uri: str) -> sqlite3.Connection:
    """Open a database for writing: WAL, so that others may read meanwhile, or what its place allows."""
    connection = _open(folder, uri)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        connection.close()
        raise JournalError(str(folder.database), f"cannot be opened ({error})") from None
    return connection


def _open(folder: RunFolder, uri: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None)
    except sqlite3.Error as error:
        raise JournalError(str(folder.database), f"cannot be opened ({error})") from None
    connection.row_factory = sqlite3.Row
    return connection


def _check_format(journal: Journal) -> None:
    if not journal.rows("SELECT 1 FROM sqlite_master WHERE name = 'run'"):
        raise JournalError(str(journal.folder.path), "holds no run yet; none was begun there")
    found = journal.setting("format")
    if found != FORMAT:
        raise JournalError(
            str(journal.folder.path), f"is format {found} of run, this kedit reads {FORMAT}"
        )
