"""Which editor a model belongs to."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from kedit_core.errors import ModelError

_MARK = "_kedit_owner"


class _Owner:
    """A weak reference that a copied or saved model does not take along."""

    def __init__(self, owner: object = None) -> None:
        self.reference = weakref.ref(owner) if owner is not None else None

    def holds(self) -> bool:
        return self.reference is not None and self.reference() is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Owner, ()


def claim(model: nn.Module, owner: object) -> Callable[[], None]:
    """Make ``owner`` the owner of ``model`` and return what lets go of it.

    Raises:
        ModelError: it has a living owner.
    """
    held = getattr(model, _MARK, None)
    if held is not None and held.holds():
        gc.collect()  # an editor is a cycle: one that nobody holds any more may linger
    if held is not None and held.holds():
        raise ModelError(
            type(model).__name__,
            "another editor owns this model; use that one, or close() it first",
        )
    mark = _Owner(owner)
    model.__dict__[_MARK] = mark

    def release() -> None:
        if model.__dict__.get(_MARK) is mark:
            del model.__dict__[_MARK]

    return release
