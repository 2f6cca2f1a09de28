"""``kedit doctor``: what kedit works with here, what is wrong, and what can be cleared away."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from attrs import asdict

from kedit_core.cli.opening import Json
from kedit_core.cli.screen import counted, print_json, readable, screen
from kedit_core.plugins import Plugins

if TYPE_CHECKING:
    from kedit_core.doctor import Finding, Health


def run(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Folders of runs to look at too."),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Delete what nothing needs: damaged cache files, orphans, leftovers."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show versions, devices, plugins and caches, and find what is broken or left over."""
    # Not earlier: it loads torch.
    from kedit_core.doctor import examine

    plugins: Plugins = context.obj
    health = examine(runs or (), fix=fix, plugins=plugins)
    if as_json:
        print_json({**asdict(health), "healthy": not health.left})
    else:
        _show(health)
    if health.left:
        sys.exit(1)


def _show(health: "Health") -> None:
    console = screen()
    held = f"{counted(health.cache_files, 'file')}, {readable(health.cache_size)}"
    lines = [
        f"versions  {', '.join(f'{name} {number}' for name, number in health.versions.items())}",
        *(f"device    {device}" for device in health.devices),
        f"plugins   {', '.join(health.plugins) or 'none'}",
        f"cache     {health.cache}: {held}",
        *(f"note      {note}" for note in health.notes),
        *(_line(finding) for finding in health.findings),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    console.print(_verdict(health), markup=False)


def _line(finding: "Finding") -> str:
    size = f" ({readable(finding.size)})" if finding.size else ""
    done = "deleted   " if finding.fixed else "problem   "
    return f"{done}{finding.what} {finding.about}{size}: {finding.problem}"


def _verdict(health: "Health") -> str:
    if not health.left:
        return "\nall is well"
    fixable = sum(1 for one in health.left if one.fixable)
    hint = f", {fixable} of which kedit doctor --fix deletes" if fixable else ""
    return f"\n{counted(len(health.left), 'problem')}{hint}"
