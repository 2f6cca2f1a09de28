"""Leftovers: what killed processes leave behind, and how to tell it from what is in use or somebody else's."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from kedit_core.cell_journal import unused_files
from kedit_core.journal import Journal

QUIET = 3600.0
"""A temporary file that nobody has written to for so many seconds is in use no more."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-z_]{8}\.tmp")
_STORED = re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{64}\.safetensors")
_HALF_WRITTEN = re.compile(r"objects/(tmp\w{8}|\.tmp\w{8}\.tmp\.\w{8})\.tmp")


@frozen(kw_only=True)
class Leftover:
    """A file or folder that nothing needs.

    Attributes:
        path: of it.
        size: bytes.
        why: what it is, in a few words.
        quiet: seconds since it was last written to.
    """

    path: Path
    size: int
    why: str
    quiet: float

    def delete(self) -> None:
        """Delete it, a folder with all that is in it.

        Raises:
            OSError: it cannot be deleted.
        """
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def temporary_in(folder: Path, why: str) -> Iterator[Leftover]:
    """Yield the hidden temporary files and folders that kedit makes beside what it writes.

    Args:
        folder: to look in, not below.
        why: what they are.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
            yield _leftover(path, why)


def unused_in(journal: Journal) -> Iterator[Leftover]:
    """Yield the files of a run that no row names; nobody may write to it meanwhile.

    What kedit never names so is somebody else's and left out.
    """
    root = journal.folder.path
    for name in unused_files(journal):
        if _STORED.fullmatch(name):
            yield _leftover(root / name, "no row of the journal names it")
        elif _HALF_WRITTEN.fullmatch(name):
            yield _leftover(root / name, "half written")


def _leftover(path: Path, why: str) -> Leftover:
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    found = [one.lstat() for one in inside]
    return Leftover(
        path=path,
        size=sum(one.st_size for one in found),
        why=why,
        quiet=max(0.0, time.time() - max(one.st_mtime for one in found)),
    )
