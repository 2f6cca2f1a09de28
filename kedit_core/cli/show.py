"""``kedit show METHOD``: all that a method says of itself."""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from attrs import NOTHING, Attribute, Factory, fields, frozen, has, resolve_types

from kedit_core.cli.screen import print_json, screen
from kedit_core.methods import MethodInfo
from kedit_core.plugins import PluginRow, Plugins
from kedit_core.presets import Preset, presets_of

_REQUIRED, _COMPUTED = "(required)", "(computed)"


@frozen(kw_only=True)
class Setting:
    """One field of a configuration: its dotted name, type, default and what it is for."""

    name: str
    type: str
    default: Any
    about: str


def run(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="Name of a method; see kedit list-methods.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show a method: its settings, presets, hooks, needs and paper."""
    plugins: Plugins = context.obj
    info = plugins.info(method)
    row = next(row for row in plugins.rows() if row.name == method)
    settings = list(settings_of(info.config))
    presets = presets_of(plugins.module(method))
    if as_json:
        print_json(_document(info, row, settings, presets))
    else:
        _show(info, row, settings, presets)


def _document(
    info: MethodInfo, row: PluginRow, settings: Sequence[Setting], presets: Sequence[Preset]
) -> dict[str, Any]:
    return {
        "method": info.name,
        "package": row.package,
        "summary": info.summary,
        "kind": info.kind,
        "batched": info.batched,
        "continual": info.continual,
        "removes": info.removes,
        "needs": sorted(info.needs),
        "paper": info.paper,
        "hooks": list(row.hooks),
        "config": [
            {"name": s.name, "type": s.type, "default": s.default, "about": s.about}
            for s in settings
        ],
        "presets": [{"name": p.name, "source": p.source, "config": p.config} for p in presets],
    }


def _show(
    info: MethodInfo, row: PluginRow, settings: Sequence[Setting], presets: Sequence[Preset]
) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = screen()
    console.print(f"[bold]{escape(info.name)}[/bold]  {escape(info.summary)}")
    console.print(
        f"package  {row.package}\nkind     {info.kind}\npaper    {info.paper}", markup=False
    )
    console.print(f"needs    {', '.join(sorted(info.needs)) or 'nothing'}")
    console.print(f"hooks    {', '.join(row.hooks)}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("SETTING", "TYPE", "DEFAULT", "ABOUT"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "SETTING")
    for setting in settings:
        shown = setting.default in (_REQUIRED, _COMPUTED)
        default = str(setting.default) if shown else repr(setting.default)
        table.add_row(*map(escape, (setting.name, setting.type, default, setting.about)))
    console.print(table)
    if presets:
        console.print("\n[bold]PRESETS[/bold]  chosen by model type, layers and width")
        for preset in presets:
            console.print(f"{preset.name:<14} {preset.source}", markup=False)


def settings_of(config: type, prefix: str = "", defaults: Any = None) -> Iterator[Setting]:
    """Yield every setting of an attrs configuration, nested ones under dotted names.

    Args:
        config: the class.
        prefix: of the names.
        defaults: the instance that holds the defaults; None takes those of the class. A method may
            nest settings with defaults of its own.
    """
    resolve_types(config)
    about = _attribute_docs(config)
    for attribute in fields(config):
        name = prefix + attribute.name
        default = _default(attribute) if defaults is None else getattr(defaults, attribute.name)
        if has(attribute.type):
            own = default if isinstance(default, attribute.type) else None
            yield from settings_of(attribute.type, f"{name}.", own)
        else:
            yield Setting(
                name=name,
                type=_type_name(attribute.type),
                default=default,
                about=about.get(attribute.name, ""),
            )


def _type_name(kind: Any) -> str:
    name = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind)
    return re.sub(
        r"\btyping\.|\bNoneType\b", lambda m: "None" if m[0] == "NoneType" else "", str(name)
    )


def _default(attribute: "Attribute[Any]") -> Any:
    default: Any = attribute.default
    if default is NOTHING:
        return _REQUIRED
    if not isinstance(default, Factory):  # type: ignore[arg-type]
        return default
    return _COMPUTED if default.takes_self else default.factory()


def _attribute_docs(config: type) -> dict[str, str]:
    """Return what the class docstring says of each attribute under ``Attributes:``."""
    section = (inspect.getdoc(config) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    joined = re.sub(r"\n {5,}", " ", section)
    found = re.findall(r"^ {4}(\w+): (.*)$", joined, flags=re.MULTILINE)
    return {name: text.replace("``", "") for name, text in found}
