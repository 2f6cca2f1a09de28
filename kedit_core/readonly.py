"""Mappings and lists that cannot be written to: what is handed to methods stays what it was."""

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

V = TypeVar("V")


def _refuse(self: object, *_: Any, **__: Any) -> NoReturn:
    kind = "dict" if isinstance(self, dict) else "list"
    raise TypeError(f"this {kind} is read-only; change a copy of it, {kind}(…)")


class ReadOnlyDict(dict[str, V]):
    """A dict that refuses to be changed; equal to a plain one, and JSON like one."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how it is copied and pickled: from the outside in, as it cannot be filled later."""
        return type(self), (dict(self),)


class ReadOnlyList(list[V]):
    """A list that refuses to be changed; equal to a plain one, and JSON like one."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = _refuse
    reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how it is copied and pickled: from the outside in, as it cannot be filled later."""
        return type(self), (list(self),)


def read_only(values: Mapping[str, V]) -> ReadOnlyDict[V]:
    """Return a copy of a mapping that cannot be written to, nor can the dicts and lists inside it.

    Args:
        values: by name; what is neither a mapping nor a list stays as it is, tensors too.
    """
    return ReadOnlyDict({name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    match value:
        case Mapping():
            return read_only(value)
        case list():
            return ReadOnlyList(map(_frozen, value))
        case tuple() if type(value) is tuple:
            return tuple(map(_frozen, value))
    return value
