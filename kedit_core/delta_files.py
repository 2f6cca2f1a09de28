"""Delta files: any number of deltas in one safetensors file. Nothing is ever unpickled."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import asdict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit_core.config import load_config
from kedit_core.deltas import Delta, Dense, LowRank, Part, Provenance, SideMemory
from kedit_core.errors import DeltaError, KeditError
from kedit_core.files import write_atomically
from kedit_core.request_files import record_of, request_from

_FORMAT = "2"
_ENTRY = "kedit"  # the only one: safetensors writes several in any order, and equal deltas make equal files


def save_deltas(deltas: Sequence[Delta], path: str | Path) -> None:
    """Write deltas, oldest first, into one file; an older file stays whole until the new one is.

    Raises:
        DeltaError: the file cannot be written, is there and holds no deltas, or ``extra`` of a request is
            no JSON.
    """
    path = Path(path)
    check_replaceable(path)
    tensors: dict[str, Tensor] = {}
    described = [_describe(delta, f"{place}", tensors) for place, delta in enumerate(deltas)]
    try:
        header = {_ENTRY: json.dumps({"format": _FORMAT, "deltas": described})}
        write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DeltaError(str(path), f"cannot be written ({error})") from error


def check_replaceable(path: Path) -> None:
    """See that nothing but deltas would be lost by writing deltas there.

    Raises:
        DeltaError: a file of another kind has the name.
    """
    with suppress(OSError):  # a name that cannot be looked up cannot be written either
        if path.is_file() and path.stat().st_size and not _holds_deltas(path):
            raise DeltaError(str(path), "is there and no delta file; choose another name")


def load_deltas(path: str | Path) -> tuple[Delta, ...]:
    """Return the deltas of a file, oldest first.

    Raises:
        DeltaError: the file is missing, damaged, or not what its ids say.
    """
    path = Path(path)
    if not path.is_file():
        raise DeltaError(str(path), "there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DeltaError(str(path), f"is no whole safetensors file ({error})") from None
    try:
        return tuple(
            _restore(one, f"{place}", tensors)
            for place, one in enumerate(_described(path, header)["deltas"])
        )
    except DeltaError as error:
        own = error.what == str(path)
        raise error if own else DeltaError(str(path), str(error)) from None
    except KeyError as error:
        raise DeltaError(str(path), f"is damaged: {error} is missing") from None
    except (KeditError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DeltaError(str(path), f"is damaged: {error}") from None


def _described(path: Path, header: dict[str, str]) -> dict[str, Any]:
    """Return what the header says of the deltas, once it is sure that this kedit can read it."""
    if _ENTRY not in header:
        raise DeltaError(str(path), "is no delta file")
    found = json.loads(header[_ENTRY])
    kind = found["format"] if isinstance(found, dict) else found
    if not isinstance(found, dict) or kind != _FORMAT:
        raise DeltaError(str(path), f"is format {kind} of delta file, this kedit reads {_FORMAT}")
    return found


def _holds_deltas(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return _ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _describe(delta: Delta, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what JSON says of a delta, and put its tensors under ``prefix``."""

    def keep(name: str, tensor: Tensor) -> None:
        # Shared storage is refused by the format, so each tensor gets its own.
        tensors[f"{prefix}/{name}"] = tensor.detach().cpu().contiguous().clone()

    parts: list[dict[str, Any]] = []
    for place, part in enumerate(delta.parts):
        match part:
            case LowRank():
                parts.append({"kind": "low-rank", "weight": part.weight})
                keep(f"part/{place}/left", part.left)
                keep(f"part/{place}/right", part.right)
            case Dense():
                parts.append({"kind": "dense", "weight": part.weight})
                keep(f"part/{place}/update", part.update)
            case SideMemory():
                parts.append(
                    {"kind": "side-memory", "at": part.at, "settings": dict(part.settings)}
                )
                for name, tensor in part.tensors.items():
                    keep(f"part/{place}/{name}", tensor)
    for name, tensor in delta.carry.items():
        keep(f"carry/{name}", tensor)
    return {
        "id": delta.id,
        "method": delta.method,
        "requests": [record_of(request) for request in delta.requests],
        "parts": parts,
        "provenance": asdict(delta.provenance),
    }


def _restore(described: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> Delta:
    delta = Delta(
        method=_text("method", described["method"]),
        requests=tuple(request_from(record) for record in described["requests"]),
        parts=tuple(
            _part(part, _below(tensors, f"{prefix}/part/{place}/"))
            for place, part in enumerate(described["parts"])
        ),
        carry=_below(tensors, f"{prefix}/carry/"),
        provenance=load_config(Provenance, described["provenance"], where="provenance"),
    )
    if delta.id != described["id"]:
        raise DeltaError(
            f"delta {described['id']}", "its content is not what was saved under this id"
        )
    return delta


def _part(described: dict[str, Any], tensors: dict[str, Tensor]) -> Part:
    match described["kind"]:
        case "low-rank":
            weight = _text("weight", described["weight"])
            return LowRank(weight=weight, left=tensors["left"], right=tensors["right"])
        case "dense":
            weight = _text("weight", described["weight"])
            return Dense(weight=weight, update=tensors["update"])
        case "side-memory":
            at = _text("at", described["at"])
            return SideMemory(at=at, tensors=tensors, settings=described["settings"])
        case kind:
            raise DeltaError("part", f"unknown kind {kind!r}")


def _text(name: str, found: Any) -> str:
    if not isinstance(found, str):
        raise DeltaError(name, f"is no text: {found!r}")
    return found


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
