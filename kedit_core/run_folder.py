"""The folder of a run: its files, each named by its content, and the lock that lets one process write."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from attrs import frozen
from filelock import FileLock, Timeout

from kedit_core.errors import JournalError, RunBusyError
from kedit_core.files import sync, write_atomically

_BLOCK = 1 << 20
_PATIENCE = 0.25  # seconds; whoever only asks who works here holds the lock for less


@frozen(kw_only=True)
class StoredFile:
    """A file of a run.

    Attributes:
        path: below the run's folder.
        checksum: sha256 of its content, as hex.
    """

    path: str
    checksum: str


class RunFolder:
    """Where a run keeps what it made.

    Attributes:
        path: of the folder.
        database: of the journal.
    """

    def __init__(self, path: str | Path) -> None:
        """Name a folder; nothing is made yet."""
        self.path = Path(path)
        self.database = self.path / "journal.sqlite"
        self._objects = self.path / "objects"
        self._owner = self.path / "owner.json"
        self._lock = FileLock(self.path / "lock", timeout=_PATIENCE)

    def exists(self) -> bool:
        """Tell whether a run was begun here."""
        return self.database.is_file()

    def acquire(self) -> None:
        """Make this process the only one that writes here, until it ends or lets go.

        Raises:
            RunBusyError: another process is.
            JournalError: the folder cannot be made or written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._objects.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            write_atomically(self._owner, partial(_name_in, since=now))
        except Timeout:
            raise RunBusyError(str(self.path), *_named_in(self._owner)) from None
        except OSError as error:
            self._lock.release()
            raise JournalError(str(self.path), f"cannot be written ({error.strerror})") from None

    def release(self) -> None:
        """Let other processes write here."""
        self._lock.release()

    def owner(self) -> tuple[int, str] | None:
        """Return the process that works here, and since when; None when nobody does, or none can tell."""
        try:
            with self._lock.acquire(timeout=0):
                return None
        except Timeout:
            return _named_in(self._owner)
        except OSError:
            return None

    def put(self, write: Callable[[Path], None]) -> StoredFile:
        """Keep a file under the name of its content; what is there already is not stored again.

        Args:
            write: fills the file that it is given.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        handle, name = tempfile.mkstemp(suffix=".tmp", dir=self._objects)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            sync(temporary)
            checksum = _sha256(temporary)
            path = self._objects / checksum[:2] / f"{checksum}.safetensors"
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                temporary.chmod(0o644)
                temporary.replace(path)
                sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return StoredFile(path=path.relative_to(self.path).as_posix(), checksum=checksum)

    def checked(self, stored: StoredFile) -> Path:
        """Return the path of a file, once it is sure that it holds what was stored.

        Raises:
            JournalError: it is missing or damaged.
        """
        path = self.path / stored.path
        if not path.is_file():
            raise JournalError(str(path), "is missing")
        if _sha256(path) != stored.checksum:
            raise JournalError(str(path), "is damaged: its content is not what was stored")
        return path

    def drop(self, path: str) -> None:
        """Delete a file."""
        (self.path / path).unlink(missing_ok=True)

    def files(self) -> Iterator[str]:
        """Yield the paths of all stored files, below the run's folder; half-written ones too."""
        for path in sorted(self._objects.rglob("*")):
            if path.is_file():
                yield path.relative_to(self.path).as_posix()


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _name_in(path: Path, since: str) -> None:
    path.write_text(json.dumps({"pid": os.getpid(), "since": since}), encoding="utf-8")


def _named_in(path: Path) -> tuple[int, str]:
    """Return the process that writes, and since when; 0 while it has not said so yet."""
    try:
        found = json.loads(path.read_text())
        return int(found["pid"]), str(found["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, "just now"
