"""``kedit verify``: whether a run is what it says."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kedit_core.cli.opening import Json
from kedit_core.cli.screen import BarProgress, counted, print_json, quiet_transformers, screen
from kedit_core.plugins import Plugins

if TYPE_CHECKING:
    from kedit_core.run_checks import Check


def run(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    cell: Annotated[
        str | None, typer.Option("--cell", help="Look at this cell alone; default: at all.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Where the unedited model is now; default: where the plan says."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run: its database, files and digests, and that its edits make of the model what they made."""
    # Not earlier: it loads torch.
    from kedit_core.verifying import verify

    plugins: Plugins = context.obj
    checks = []
    with quiet_transformers():
        for check in verify(run, cell=cell, model=model, plugins=plugins, progress=BarProgress()):
            checks.append(check)
            if not as_json:
                _show(check)
    failed = [check for check in checks if not check.passed]
    if as_json:
        print_json(
            [
                {
                    "check": one.what,
                    "about": one.about or None,
                    "passed": one.passed,
                    "found": one.found,
                    "problems": one.problems,
                }
                for one in checks
            ]
        )
    elif failed:
        screen().print(f"\n{len(failed)} of {counted(len(checks), 'check')} failed", markup=False)
    if failed:
        sys.exit(1)


def _show(check: "Check") -> None:
    from rich.markup import escape

    console = screen()
    mark = "[green]ok    [/green]" if check.passed else "[red]failed[/red]"
    about = f" {check.about}" if check.about else ""
    said = [check.found] if check.passed else check.problems
    for line in said:
        console.print(f"{mark} {check.what}{escape(about)}: {escape(line)}", soft_wrap=True)
