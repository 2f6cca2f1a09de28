"""Configurations: TOML, JSON or a mapping into a method's attrs class, with readable complaints."""

import json
import tomllib
from collections import abc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import cattrs
from attrs import NOTHING, Attribute, Factory, fields, has
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn
from cattrs.v import format_exception

from kedit_core.errors import ConfigError, did_you_mean

C = TypeVar("C")
Source = Mapping[str, Any] | str | Path | None

_MANY = {list: list, set: set, frozenset: frozenset, abc.Sequence: tuple}


def load_config(cls: type[C], source: Source | C = None, *, where: str = "config") -> C:
    """Return an instance of ``cls`` filled from ``source``.

    Args:
        cls: attrs class with a default for every field.
        source: a mapping, a TOML or JSON file, an instance (returned as it is), or None for
            defaults.
        where: what to call the source in a complaint.

    Raises:
        ConfigError: an unknown field (the closest one is offered), a wrong type, a value out of
            range.
    """
    if isinstance(source, cls):
        return source
    if source is None:
        return cls()
    if isinstance(source, str | Path):
        where, source = str(source), read_mapping(Path(source))
    if not isinstance(source, Mapping):
        raise ConfigError(
            where, [f"expected {cls.__name__} or a mapping, not {type(source).__name__}"]
        )
    try:
        return _converter().structure(dict(source), cls)
    except cattrs.BaseValidationError as error:
        complaints = cattrs.transform_error(error, "", _complaint)
        raise ConfigError(where, [_with_place(complaint) for complaint in complaints]) from None


def as_mapping(config: Any) -> dict[str, Any]:
    """Return an attrs configuration as plain JSON values; ``load_config`` reads them back."""
    plain: dict[str, Any] = _converter().unstructure(config)
    return plain


def read_mapping(path: Path) -> dict[str, Any]:
    """Return what a TOML or JSON file says.

    Raises:
        ConfigError: the file is missing, is no TOML or JSON, or holds something else than a table.
    """
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read ({error.strerror})"]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), [f"is not valid {kind}: {error}"]) from None
    if not isinstance(found, dict):
        raise ConfigError(str(path), ["holds no table of settings"])
    return found


def parse_settings(settings: list[str], where: str = "--set") -> dict[str, Any]:
    """Return ``["a.b=1", …]`` as a nested mapping; a value is JSON, or else a string.

    Args:
        settings: of the form key=value, dots for tables inside tables.
        where: what to call their source in a complaint.

    Raises:
        ConfigError: one has no ``=``, or goes below a value.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ConfigError(where, [f"{setting!r} is not of the form key=value"])
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        *parents, last = name.split(".")
        table = found
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    where, [f"{name!r} goes below {parent!r}, which is already a value"]
                )
        table[last] = value
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with the values of ``above`` laid over it, table by table."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        found[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return found


def _converter() -> cattrs.Converter:
    """Return a converter that takes values as they are: ``"0.1"`` is no number, ``5`` is no text."""
    converter = cattrs.Converter(
        forbid_extra_keys=True, unstruct_collection_overrides={abc.Set: sorted}
    )
    converter.register_structure_hook_factory(has, lambda kind: _table(converter, kind))
    for kind, allowed in ((str, (str,)), (int, (int,)), (float, (int, float)), (bool, (bool,))):
        converter.register_structure_hook(kind, _strict(kind, allowed))
    converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _literal)
    converter.register_structure_hook_func(
        lambda kind: _origin(kind) is tuple, lambda value, kind: _tuple(converter, value, kind)
    )
    converter.register_structure_hook_func(
        lambda kind: _origin(kind) in _MANY, lambda value, kind: _many(converter, value, kind)
    )
    converter.register_structure_hook_func(
        lambda kind: _origin(kind) in (Union, UnionType),
        lambda value, kind: _union(converter, value, kind),
    )
    return converter


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _table(converter: cattrs.Converter, kind: type) -> Any:
    fill: Any = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

    def structure(value: Any, of: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a table of settings, found {value!r}")
        return fill(_over_defaults(converter, value, kind), of)

    return structure


def _over_defaults(
    converter: cattrs.Converter, table: Mapping[str, Any], kind: type
) -> dict[str, Any]:
    """Return a table whose inner tables are laid over what ``kind`` holds there by default.

    A method may give settings that it shares with others defaults of its own: naming one of them
    must leave the rest as the method has them.
    """
    found = dict(table)
    for attribute in fields(kind):
        own, default = found.get(attribute.name), _default(attribute)
        if isinstance(own, Mapping) and has(type(default)):
            found[attribute.name] = merged(converter.unstructure(default), own)
    return found


def _default(attribute: "Attribute[Any]") -> Any:
    """Return the default of a field, made anew; NOTHING where there is none or it needs the instance."""
    made: Any = attribute.default
    if not isinstance(made, Factory):  # type: ignore[arg-type]
        return made
    return NOTHING if made.takes_self else made.factory()


def _strict(kind: type, allowed: tuple[type, ...]) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"expected {kind.__name__}, found {value!r}")
        return kind(value)

    return structure


def _literal(value: Any, kind: Any) -> Any:
    if not any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
        choices = [str(choice) for choice in get_args(kind)]
        raise ValueError(
            f"{value!r} is none of {', '.join(choices)}{did_you_mean(str(value), choices)}"
        )
    return value


def _tuple(converter: cattrs.Converter, value: Any, kind: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, found {value!r}")
    kinds = get_args(kind)
    if kinds[-1:] == (Ellipsis,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"expected {len(kinds)} values, found {len(value)}")
    return tuple(converter.structure(one, of) for one, of in zip(value, kinds, strict=True))


def _many(converter: cattrs.Converter, value: Any, kind: Any) -> Any:
    # A text is a sequence of letters too, and never meant as one.
    if not isinstance(value, list | tuple | abc.Set):
        raise TypeError(f"expected a list, found {value!r}")
    (of,) = get_args(kind)
    return _MANY[_origin(kind)](converter.structure(one, of) for one in value)


def _union(converter: cattrs.Converter, value: Any, kind: Any) -> Any:
    members = [member for member in get_args(kind) if member is not NoneType]
    if value is None and NoneType in get_args(kind):
        return None
    if len(members) == 1:
        return converter.structure(value, members[0])
    for member in members:
        with suppress(cattrs.BaseValidationError, TypeError, ValueError):
            return converter.structure(value, member)
    named = (str(member) if get_args(member) else member.__name__ for member in members)
    raise TypeError(f"expected {' or '.join(named)}, found {value!r}".replace("typing.", ""))


def _complaint(error: BaseException, kind: Any) -> str:
    if isinstance(error, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in fields(error.cl)] if has(error.cl) else []
        names = sorted(map(str, error.extra_fields))
        return ", ".join(f"unknown setting {name!r}{did_you_mean(name, known)}" for name in names)
    if isinstance(error, ConfigError):
        return "; ".join(error.problems)
    if isinstance(error, TypeError | ValueError | ArithmeticError) and error.args:
        return str(error.args[0])
    return format_exception(error, kind)


def _with_place(complaint: str) -> str:
    """Turn cattrs's "what @ .where" into "where: what"."""
    what, _, place = complaint.rpartition(" @ ")
    return f"{place.lstrip('.')}: {what}" if place.lstrip(".") else what
