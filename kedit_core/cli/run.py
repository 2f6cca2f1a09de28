"""``kedit run``: carry out a plan, and go on with it after whatever stopped it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kedit_core.cli import tell
from kedit_core.cli.opening import Json, read
from kedit_core.cli.screen import print_json, screen
from kedit_core.errors import JournalError
from kedit_core.plugins import Plugins


def run(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="A TOML file: model, requests, method, schedule, …")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run's folder; by default the plan's name with .run."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that is in the folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make and judge streams of edits as a plan says; what was done is kept in the run's folder."""
    from kedit_core.plans import read_plan

    plugins: Plugins = context.obj
    wanted = read_plan(plan)
    folder = out if out is not None else plan.with_suffix(".run")
    if resume and not (folder / "journal.sqlite").is_file():
        raise JournalError(
            str(folder), "holds no run to go on with; leave --resume out to begin one"
        )
    requests = read(plugins, wanted.requests, wanted.limit, skip_bad=wanted.skip_bad)
    record = _carried_out(plugins, wanted, requests, folder, resume=resume)
    if as_json:
        from kedit_core.cli.results import document

        print_json(document(record))
    else:
        from kedit_core.cli.results import results

        console = screen()
        console.print(results(record))
        for cell in record.cells:
            if cell.stopped:
                console.print(f"{cell.name} stopped: {cell.stopped}", markup=False)
        console.print(f"\nkept in {folder}; next: kedit log {folder}", markup=False)


def _carried_out(plugins: Plugins, plan: Any, requests: Any, folder: Path, *, resume: bool) -> Any:
    from kedit_core.cli.live import LiveTable
    from kedit_core.cli.screen import quiet_transformers
    from kedit_core.run_reading import read_run
    from kedit_core.runs import Run

    table = LiveTable(plan.cells())
    work = Run(plan, folder, resume=resume, plugins=plugins, progress=table, watcher=table.watcher)
    try:
        with table, quiet_transformers():
            work.carry_out(requests)
    except KeyboardInterrupt:
        tell(f"interrupted; all that was done is kept, and --resume goes on with {folder}")
        raise
    return read_run(folder)
