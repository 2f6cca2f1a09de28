"""``kedit scope``: which prompts a delta speaks to."""

from pathlib import Path
from typing import Annotated

import typer

from kedit_core.cli.opening import Device, Dtype, Json, Model, open_editor
from kedit_core.cli.screen import print_json, screen
from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins


def run(
    context: typer.Context,
    model: Model,
    delta: Annotated[Path, typer.Option("--delta", help="The delta file, RUN or RUN/CELL to ask.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="A text file, one prompt a line.")],
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show which prompts fall in the scope of a memory, and which edit each one meets."""
    plugins: Plugins = context.obj
    try:
        lines = prompts.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeditError(f"{prompts} cannot be read ({reason})") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise KeditError(f"{prompts} holds no prompt")
    editor = open_editor(plugins, model, [delta], dtype, device)
    found = editor.scope(texts)
    probabilities = found.probability.tolist()
    if as_json:
        rows = zip(texts, probabilities, found.requests, strict=True)
        print_json([{"prompt": p, "probability": q, "request": r} for p, q, r in rows])
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PROBABILITY", "REQUEST", "PROMPT"):
        table.add_column(heading)
    for text, probability, request in zip(texts, probabilities, found.requests, strict=True):
        table.add_row(f"{probability:.3f}", request or "-", escape(text))
    screen().print(table)
