"""The page of public names: what a plugin may import from core and from the libraries."""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

ROOMS = ("kedit_core", "kedit_core.testing", "kedit_locate", "kedit_memory")
"""Packages whose public modules others may import."""

_OWN = ("kedit_core.cli", "kedit_core.template", "kedit_core.builtin")
"""Rooms of core that are no library."""


def public_names() -> Iterator[str]:
    """Yield the page: every public module with its names, each with what it takes and what it is."""
    yield "# Public names\n"
    yield (
        "What a plugin may import: names without a leading underscore, in modules without one. "
        "Those that `kedit_core` itself exports come first; they are loaded when they are first used.\n"
    )
    core = import_module("kedit_core")
    yield "## kedit_core\n\n| name | defined in |\n| --- | --- |"
    for name in core.__all__:
        home = getattr(core, name).__module__
        # The two markers are made by pluggy, for core.
        home = home if home.startswith("kedit_core.") else "kedit_core.hookspecs"
        yield f"| `{name}` | `{home}` |"
    yield ""
    for room in ROOMS:
        for module in _modules(room):
            yield from _section(module)


def _modules(room: str) -> Iterator[ModuleType]:
    package = import_module(room)
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
        path = f"{room}.{found.name}"
        if not found.name.startswith("_") and not found.ispkg and not path.startswith(_OWN):
            yield import_module(path)


def _section(module: ModuleType) -> Iterator[str]:
    found = {
        name: one
        for name, one in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(one) or inspect.isfunction(one))
        and one.__module__ == module.__name__
    }
    if not found:
        return
    yield f"## {module.__name__}\n\n{_first_line(module)}\n\n| name | |\n| --- | --- |"
    for name, one in sorted(found.items()):
        arguments = (
            "" if inspect.isclass(one) else f"({', '.join(inspect.signature(one).parameters)})"
        )
        yield f"| `{name}{arguments}` | {_first_line(one)} |"
    yield ""


def _first_line(one: object) -> str:
    text = (inspect.getdoc(one) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")
