"""Files that are either whole or not there."""

import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write ``path`` through a temporary name in its folder, so that no reader ever sees half of it.

    Args:
        path: where the file shall be; its folder is made when missing.
        write: fills the file it is given.

    Raises:
        OSError: the disk is full, the folder cannot be written, or a folder or device has the name;
            the old file is intact.
    """
    _make_room(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """See that a file could be written, before the work that fills it; nothing is made for it yet.

    Raises:
        OSError: a folder or device has the name, or its folder cannot be written to.
    """
    _check_name(path)
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise OSError(errno.ENOTDIR, "a file stands where its folder would be", str(path))
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=there):
        pass


def _check_name(path: Path) -> None:
    if path.exists() and not path.is_file():
        # Renaming over /dev/null would succeed for root, and take the device away from everybody.
        raise OSError(errno.EINVAL, "it is there and no file", str(path))


def _make_room(path: Path) -> None:
    _check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OSError(errno.ENOTDIR, "a file stands where its folder would be", str(path)) from None


def sync(path: Path) -> None:
    """Wait until the disk has a file or folder; folders cannot be synced on every platform."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
