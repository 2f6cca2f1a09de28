"""Folders that are either whole or not there."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from kedit_core.files import sync
from kedit_core.interrupts import uninterrupted


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Lend a temporary folder beside ``path``, which takes that name at the end of the block.

    When the block raises, Ctrl-C included, it is removed with all that is in it. After a crash it may
    be left over, under a hidden name that ends in ``.tmp``.

    Args:
        path: where the folder shall be; its parents are made when missing.

    Raises:
        OSError: something has the name already, an empty folder excepted, or nothing can be written.
    """
    path = path.resolve()
    check_free(path)
    missing = [folder for folder in path.parents if not folder.exists()]  # innermost first
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
    with uninterrupted() as gate:
        try:
            temporary.mkdir(parents=True)
            with gate.open():
                yield temporary
            _finish(temporary)
            if path.exists():
                path.rmdir()  # fails when something was put there in the meantime
            temporary.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # what was written, or somebody else's, keeps them
                for folder in missing:
                    folder.rmdir()


def _finish(folder: Path) -> None:
    """Give the files the mode of any new one, as safetensors' own are closed to others, and sync them."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
        sync(file)


def check_free(path: Path) -> None:
    """See that a folder could be written, before the work that fills it.

    Raises:
        OSError: a file or a folder that is not empty has the name.
    """
    if path.is_dir() and any(path.iterdir()):
        raise OSError(errno.ENOTEMPTY, "there is a folder already that is not empty", str(path))
    if path.exists() and not path.is_dir():
        raise OSError(errno.EEXIST, "there is a file of this name", str(path))
