"""``kedit evaluate``: judge a model, with or without deltas."""

import re
from typing import Annotated, Any

import typer

from kedit_core.cli.opening import (
    Chat,
    Deltas,
    Device,
    Dtype,
    Json,
    Limit,
    Model,
    SkipBad,
    open_editor,
    read,
)
from kedit_core.cli.screen import counted, print_json, screen
from kedit_core.config import parse_settings
from kedit_core.plugins import Plugins
from kedit_core.reports import EvalReport


def run(
    context: typer.Context,
    model: Model,
    requests: Annotated[
        str,
        typer.Option("--requests", help="A file of JSON lines, or a name such as atlas:editable."),
    ],
    delta: Deltas = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names joined by commas; options as NAME:key=value, e.g. perplexity:text=FILE. "
            'A value with a comma stands in double quotes: perplexity:text="a,b.txt".'
        ),
    ] = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    chat: Chat = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Judge edits: reliability, generalization, locality and portability, before and after."""
    plugins: Plugins = context.obj
    asked = read(plugins, requests, limit, skip_bad)
    editor = open_editor(plugins, model, delta, dtype, device, chat=chat)
    wanted = None if metrics is None else _metrics(metrics)
    after = editor.evaluate(asked, wanted)
    with editor.original():
        before = editor.evaluate(asked, wanted)
    if as_json:
        print_json(_document(before, after))
    else:
        _show(before, after, len(asked))


def _metrics(text: str) -> dict[str, dict[str, Any]]:
    """Return the metrics that an option names: ``a,b:key=value`` with any number of ``:key=value``.

    Inside double quotes a comma ends nothing, and a colon only begins an option where a name and ``=``
    follow it: paths may hold both.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', text):
        name, colon, rest = one.strip().partition(":")
        options = re.split(r':(?=[\w.]+=)(?=(?:[^"]*"[^"]*")*[^"]*$)', rest) if colon else []
        found[name] = parse_settings(options, "--metrics")
    return found


def _document(before: EvalReport, after: EvalReport) -> dict[str, Any]:
    return {
        "method": after.method,
        "edits_in_force": after.step,
        "before": before.means(),
        "after": after.means(),
        "missing": after.missing,
        "scores": [
            {"request": score.request, "metric": score.metric, "value": score.value}
            for score in after.scores
        ],
        "seconds": after.seconds,
        "peak_memory": after.peak_memory,
    }


def _show(before: EvalReport, after: EvalReport, requests: int) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("METRIC", no_wrap=True)
    for heading in ("UNEDITED", "NOW", "REQUESTS WITHOUT DATA"):
        table.add_column(heading, justify="right")
    first, now = before.means(), after.means()
    for metric in now:
        missing = after.missing.get(metric, 0)
        cells = (
            f"{first.get(metric, float('nan')):.3f}",
            f"{now[metric]:.3f}",
            str(missing or "-"),
        )
        table.add_row(metric, *cells)
    console = screen()
    console.print(table)
    for metric, count in after.missing.items():
        if metric not in now:
            console.print(f"{metric}: no data in {counted(count, 'request')}", markup=False)
    in_force = f"{counted(after.step, 'edit')} in force ({after.method})"
    console.print(
        f"\n{counted(requests, 'request')}, {in_force if after.step else 'no edit in force'}, "
        f"{after.seconds:.1f} s, "
        f"{after.peak_memory / 2**20:,.0f} MiB at the most"
    )
