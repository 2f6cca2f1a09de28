"""A plan as TOML."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def plan_text(plan: Mapping[str, Any]) -> str:
    """Return a plan as TOML; what TOML has no word for is left out, as it was never given."""
    return "\n".join(_table(plan, ())).strip("\n")


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table: its own values first, then the tables in it."""
    inner = {name: value for name, value in values.items() if _is_table(value)}
    for name, value in values.items():
        if name not in inner and value is not None:
            yield f"{_key(name)} = {_value(value)}"
    for name, value in inner.items():
        where = (*path, str(name))
        dotted = ".".join(map(_key, where))
        for one in [value] if isinstance(value, Mapping) else value:
            head = f"[{dotted}]" if isinstance(value, Mapping) else f"[[{dotted}]]"
            needless = isinstance(value, Mapping) and one and all(map(_is_table, one.values()))
            yield from () if needless else ("", head)
            yield from _table(one, where)


def _is_table(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    several = isinstance(value, list | tuple) and len(value) > 0
    return several and all(isinstance(one, Mapping) for one in value)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)  # nan and inf are called so in TOML too
        case list() | tuple():
            return f"[{', '.join(_value(one) for one in value if one is not None)}]"
        case Mapping():
            inside = (
                f"{_key(name)} = {_value(one)}" for name, one in value.items() if one is not None
            )
            return "{ " + ", ".join(inside) + " }" if value else "{}"
    return json.dumps(str(value), ensure_ascii=False)


def _key(name: object) -> str:
    text = str(name)
    plain = text.isascii() and text.replace("-", "").replace("_", "").isalnum()
    return text if plain else json.dumps(text, ensure_ascii=False)
