"""Tensors worth keeping between edits and processes: content-addressed safetensors files."""

import hashlib
import json
import logging
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
from attrs import frozen
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit_core.digests import digest
from kedit_core.files import write_atomically

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

_OWN_NAME = re.compile("[0-9a-f]{32}")


def default_folder() -> Path:
    """Return ``$KEDIT_CACHE``, or the platform's user cache folder for kedit."""
    chosen = os.environ.get("KEDIT_CACHE")
    return (
        Path(chosen).expanduser()
        if chosen
        else Path(platformdirs.user_cache_dir("kedit", appauthor=False))
    )


@frozen(kw_only=True)
class CacheFile:
    """A file of a cache.

    Attributes:
        path: of the file.
        size: bytes.
        problem: why it cannot be used; empty when it can.
    """

    path: Path
    size: int
    problem: str


class TensorCache:
    """Keeps tensors under a key that says everything they depend on.

    A file is written under a temporary name and renamed, so readers see whole files only; a lock
    saves double work between processes, no more. A damaged file is reported and made anew.
    """

    def __init__(self, folder: Path | None = None, *, memory: int = 2 << 30) -> None:
        """Keep files in ``folder`` (None: the user's cache folder) and ``memory`` bytes at hand."""
        self.folder = folder if folder is not None else default_folder()
        self._memory = memory
        self._at_hand: OrderedDict[Path, Tensors] = OrderedDict()

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], Tensors]) -> Tensors:
        """Return the tensors of ``key``, from memory, from disk, or made by ``make`` and kept.

        They come back on the CPU and detached, whichever way they came.

        Args:
            kind: what they are, a folder name such as ``moments``.
            key: JSON values that say all that the tensors depend on.
            make: computes them when they are not there.
        """
        path = self.path(kind, key)
        if path not in self._at_hand:
            self._keep_at_hand(path, self._from_disk(path, key) or self._made(path, key, make))
        self._at_hand.move_to_end(path)
        return dict(self._at_hand[path])

    def find(self, kind: str, key: Mapping[str, Any]) -> Tensors | None:
        """Return the tensors of ``key`` if they are kept and whole, else None."""
        path = self.path(kind, key)
        return dict(self._at_hand[path]) if path in self._at_hand else self._from_disk(path, key)

    def put(self, kind: str, key: Mapping[str, Any], tensors: Tensors) -> Path:
        """Keep ``tensors`` under ``key`` and return the file that holds them."""
        path = self.path(kind, key)
        tensors = _plain(tensors)
        self._write(path, key, tensors)
        self._keep_at_hand(path, tensors)
        return path

    def path(self, kind: str, key: Mapping[str, Any]) -> Path:
        """Return where the tensors of ``key`` lie or would lie."""
        name = hashlib.blake2b(_canonical(key).encode(), digest_size=16).hexdigest()
        return self.folder / kind / f"{name}.safetensors"

    def keys(self, kind: str) -> dict[Path, dict[str, Any] | None]:
        """Return every file of a kind with its key; None for a file that is damaged or foreign."""
        found: dict[Path, dict[str, Any] | None] = {}
        for path in sorted((self.folder / kind).glob("*.safetensors")):
            try:
                found[path] = json.loads(_read(path)[0]["key"])
            except (SafetensorError, OSError, ValueError, KeyError):
                found[path] = None
        return found

    def files(self) -> Iterator["CacheFile"]:
        """Yield every file of the cache, read whole; what others put into the folder is left out."""
        for path in sorted(self.folder.glob("*/*.safetensors")):
            if not _OWN_NAME.fullmatch(path.stem):
                continue
            problem = ""
            try:
                key = json.loads(_read(path)[0]["key"])
                if self.path(path.parent.name, key) != path:
                    raise ValueError("it belongs to another key")
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                problem = f"is damaged ({error})"
            with suppress(FileNotFoundError):  # another process made it anew
                yield CacheFile(path=path, size=path.stat().st_size, problem=problem)

    def _made(self, path: Path, key: Mapping[str, Any], make: Callable[[], Tensors]) -> Tensors:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            warnings.warn(f"cache folder {self.folder} cannot be written ({error})", stacklevel=3)
            return _plain(make())
        try:
            # Another process may have made it while this one waited.
            tensors = self._from_disk(path, key, reports=False)
            if tensors is None:
                tensors = _plain(make())
                self._write(path, key, tensors)
        finally:
            lock.release()
        return tensors

    def _write(self, path: Path, key: Mapping[str, Any], tensors: Tensors) -> None:
        header = {"key": _canonical(key), "payload": _payload(tensors)}
        try:
            write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
        except (OSError, SafetensorError) as error:
            warnings.warn(f"cannot keep {path} ({error}); going on without", stacklevel=4)

    def _from_disk(
        self, path: Path, key: Mapping[str, Any], *, reports: bool = True
    ) -> Tensors | None:
        try:
            if not path.exists():
                return None
            header, tensors = _read(path)
            if header["key"] != _canonical(key):
                raise ValueError("it belongs to another key")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            if reports:
                found = f"cache file {path} is damaged ({error}); it is made anew"
                warnings.warn(found, stacklevel=4)
            return None
        log.debug("read %s", path)
        return tensors

    def _keep_at_hand(self, path: Path, tensors: Tensors) -> None:
        self._at_hand[path] = tensors
        while len(self._at_hand) > 1 and sum(map(_size, self._at_hand.values())) > self._memory:
            self._at_hand.popitem(last=False)


def _plain(tensors: Tensors) -> Tensors:
    """Return tensors as they come back from a file: on the CPU, detached, each with a storage of its own."""
    plain: Tensors = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if place in taken else own
        taken.add(place)
    return plain


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"))


def _payload(tensors: Tensors) -> str:
    parts = (f"{name}={digest(tensors[name])}" for name in sorted(tensors))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, str], Tensors]:
    """Return header and tensors of a cache file; raises when its payload is not what was written."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["payload"] != _payload(tensors):
        raise ValueError("its checksum does not match")
    return header, tensors


def _size(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
