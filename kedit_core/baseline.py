"""What the unedited model says, asked once and kept."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch import nn

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Baseline:
    """Answers of the unedited model; each is computed once, however often it is asked for."""

    def __init__(
        self, model: nn.Module, original: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Ask ``model`` inside ``original()``, which shows it unedited."""
        self._model = model
        self._original = original
        self._values: dict[Hashable, Any] = {}

    def value(self, key: Hashable, fn: Callable[[nn.Module], V]) -> V:
        """Return ``fn(model)`` of the unedited model; ``key`` says all that the result depends on."""
        values: Mapping[Hashable, V] = self.many([key], lambda model, _: [fn(model)])
        return values[key]

    def many(
        self, keys: Sequence[K], fn: Callable[[nn.Module, list[K]], Sequence[V]]
    ) -> dict[K, V]:
        """Return a value per key; ``fn(model, missing)`` gives those that are not known yet, in order."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._values]
        if missing:
            with self._original():
                self._values.update(zip(missing, fn(self._model, missing), strict=True))
        return {key: self._values[key] for key in keys}
