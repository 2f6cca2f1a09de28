"""What the files of a run hold: deltas, and the originals of the weights that they change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit_core.delta_files import load_deltas
from kedit_core.deltas import Delta
from kedit_core.digests import digest
from kedit_core.errors import DeltaError, JournalError
from kedit_core.journal import Journal
from kedit_core.run_folder import StoredFile


def put(journal: Journal, write: Callable[[Path], None]) -> StoredFile:
    """Keep a file in the run's folder; see :meth:`RunFolder.put`.

    Raises:
        JournalError: it cannot be written.
    """
    try:
        return journal.folder.put(write)
    except (OSError, SafetensorError) as error:
        raise JournalError(str(journal.folder.path), f"cannot be written ({error})") from None
    except DeltaError as error:
        raise JournalError(str(journal.folder.path), error.problem) from None


def save_original(weight: str, tensor: Tensor, target: Path) -> None:
    """Write the original of a weight into a file."""
    save_file({weight: tensor}, target, metadata={"kedit": "original"})


def stored_delta(journal: Journal, row: Any) -> Delta:
    """Return the delta of a row of the table ``edits``, with the digests that it left in the model.

    Raises:
        JournalError: its file is missing or damaged.
    """
    path = journal.folder.checked(StoredFile(path=row["path"], checksum=row["checksum"]))
    try:
        (delta,) = load_deltas(path)
    except (DeltaError, ValueError) as error:
        raise JournalError(str(path), f"holds no delta of this run ({error})") from None
    # The file was written before the delta was in the model; what it left there stands in the row.
    return evolve(delta, provenance=evolve(delta.provenance, written=json.loads(row["after"])))


def stored_original(journal: Journal, row: Any) -> Tensor:
    """Return the original of a row of the table ``originals``, as the model stored it.

    Raises:
        JournalError: its file is missing or damaged.
    """
    path = journal.folder.checked(StoredFile(path=row["path"], checksum=row["checksum"]))
    try:
        tensor = load_file(path)[row["weight"]]
    except (OSError, SafetensorError, KeyError) as error:
        raise JournalError(str(path), f"holds no original of {row['weight']} ({error})") from None
    if digest(tensor) != row["digest"]:
        raise JournalError(str(path), f"is not the original of {row['weight']}: its digest differs")
    return tensor
