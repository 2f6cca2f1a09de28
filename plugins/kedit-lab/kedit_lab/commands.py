"""``kedit lab``: what people who compare editors ask for beside editing."""

from pathlib import Path
from typing import Annotated

import typer

from kedit_core.cli.opening import Json

lab = typer.Typer(help="For people who compare editors: a report of a run.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(help="The folder of a run, finished or not.")]
Out = Annotated[Path, typer.Option("--out", help="The file to write.")]


@lab.command()
def report(run: Run, out: Out = Path("report.html"), as_json: Json = False) -> None:
    """Write one HTML file about a run: what was asked, what came of it, charts, examples, the plan."""
    from kedit_lab.report.writing import show_written, write_report

    show_written(write_report(run, out), as_json)
