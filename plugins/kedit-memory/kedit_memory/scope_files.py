"""Scope classifiers in files, alone or among what else a method has trained, and for which model each is.

A safetensors file holds one where its tensors have the names that ``ScopeClassifier.tensors`` gives them and
the JSON under ``said`` in its header has ``scope``, ``made_for`` and ``chat``. Nothing is ever unpickled.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit_core import Weights
from kedit_core.digests import tokenizer_fingerprint
from kedit_core.errors import KeditError
from kedit_core.files import write_atomically
from kedit_memory.scope import ScopeClassifier, classifier_from

BEST = "best.safetensors"
"""The file that is taken of a folder."""

_SAID, _TOKENIZER = "said", "tokenizer"


@frozen(kw_only=True)
class StoredScope:
    """A scope classifier as a file holds it.

    Attributes:
        classifier: trained and calibrated.
        made_for: what its model is known by, as :func:`made_for` gives it.
        chat: its prompts were rendered through the chat template.
    """

    classifier: ScopeClassifier
    made_for: Mapping[str, str]
    chat: bool = False


class Made(Protocol):
    """What was made for one model."""

    @property
    def made_for(self) -> Mapping[str, str]:
        """Return what that model is known by."""


M = TypeVar("M", bound=Made)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for: most are not the classifier's."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        found: Tensor = self._file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def made_for(weights: Weights, tokenizer: Any) -> dict[str, str]:
    """Return what a base and its tokenizer are known again by; edits of its weights make no other base."""
    return {**weights.base_digests(""), _TOKENIZER: tokenizer_fingerprint(tokenizer)}


def differs(known: Mapping[str, str], base: Mapping[str, str]) -> str:
    """Return what was made for another one of, ``model`` or ``tokenizer``, or nothing.

    Args:
        known: for which it was made, as :func:`made_for` gave it.
        base: the one at hand.
    """
    # In the dtype of either, which comes first in both.
    kinds = (next(iter(base)), next(iter(known), ""))
    if not any(base.get(kind) == known.get(kind, "none") for kind in kinds):
        return "model"
    return "" if base[_TOKENIZER] == known.get(_TOKENIZER) else "tokenizer"


def write_scope(stored: StoredScope, path: Path) -> None:
    """Write a classifier into a file of its own; an older file stays whole until the new one is.

    Raises:
        KeditError: the file cannot be written.
    """
    tensors = {
        name: one.detach().cpu().contiguous().clone()
        for name, one in stored.classifier.tensors().items()
    }
    said = {
        "scope": stored.classifier.settings(),
        "made_for": dict(stored.made_for),
        "chat": stored.chat,
    }
    header = {_SAID: json.dumps(said)}
    try:
        write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    except (OSError, SafetensorError) as error:
        raise KeditError(f"scope classifier {path} cannot be written ({error})") from error


def read_scope(path: Path) -> StoredScope:
    """Return the classifier that a file holds.

    Args:
        path: the file, or a folder, of which the best one is taken.

    Raises:
        KeditError: it is missing, damaged, or holds no scope classifier.
    """
    path = path / BEST if path.is_dir() else path
    if not path.is_file():
        raise KeditError(f"there is no scope classifier {path}")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[_SAID])
            return StoredScope(
                classifier=classifier_from(_Tensors(file), said["scope"], str(path)),
                made_for=said["made_for"],
                chat=bool(said["chat"]),
            )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeditError):
            raise
        raise KeditError(f"{path} holds no whole scope classifier ({error})") from None


def scope_for(path: Path, base: Mapping[str, str]) -> StoredScope:
    """Return the classifier for a model.

    Args:
        path: a file, a folder that training filled, or a folder of such folders.
        base: what the model is known by, as :func:`made_for` gives it.

    Raises:
        KeditError: there is none, or it was trained for another model.
    """
    return fitting(path, base, read_scope, called="scope classifier")


def fitting(
    path: Path, base: Mapping[str, str], read: Callable[[Path], M], *, called: str, hint: str = ""
) -> M:
    """Return what was trained for a model.

    Args:
        path: a file, a folder that training filled, or a folder of such folders.
        base: what the model is known by, as :func:`made_for` gives it.
        read: reads a file, or the best one of a folder.
        called: what it is called in messages.
        hint: behind these.

    Raises:
        KeditError: there is none, or it was trained for another model.
    """
    inside = sorted(path.glob(f"*/{BEST}")) if path.is_dir() and not (path / BEST).exists() else []
    for one in inside:
        found = read(one)
        if not differs(found.made_for, base):
            return found
    if inside:
        raise KeditError(
            f"none of the {len(inside)} {called}s in {path} was trained for this model{hint}"
        )
    found = read(path)
    other = differs(found.made_for, base)
    if other:
        raise KeditError(f"{called} {path} was trained for another {other}{hint}")
    return found
