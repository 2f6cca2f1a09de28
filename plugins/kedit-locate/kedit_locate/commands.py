"""``kedit locate``: second moments, built before they are needed."""

from pathlib import Path
from typing import Annotated

import typer

from kedit_core.cli.opening import Device, Dtype, Json, Model
from kedit_core.plugins import Plugins
from kedit_locate.config import Statistics

locate = typer.Typer(help="Statistics for locate-then-edit methods.", no_args_is_help=True)
stats = typer.Typer(
    help="Second moments of keys: build, list, verify, import.", no_args_is_help=True
)
locate.add_typer(stats, name="stats")

Corpus = Annotated[
    str | None,
    typer.Option("--corpus", help="A text file; default: text that the model samples itself."),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="How many; default: ten times the MLP's width."),
]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens of one passage.")]
Short = Annotated[
    int | None,
    typer.Option("--short", min=2, help="Half of the tokens come in passages of this length."),
]


@stats.command()
def build(
    context: typer.Context,
    model: Model,
    layers: Annotated[str, typer.Option("--layers", help="For example 5, 3,4,5 or 3-8.")],
    corpus: Corpus = None,
    tokens: Tokens = None,
    length: Length = 64,
    short: Short = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Collect the second moments of some layers, all in one pass over the text."""
    from kedit_locate.statistics import build_statistics, show_rows

    plugins: Plugins = context.obj
    wanted = Statistics(corpus=corpus, tokens=tokens, length=length, short=short)
    show_rows(build_statistics(plugins, model, layers, wanted, dtype, device), as_json)


@stats.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the second moments that are kept."""
    from kedit_locate.statistics import kept_statistics, show_rows

    show_rows(kept_statistics(), as_json)


@stats.command()
def verify(as_json: Json = False) -> None:
    """Check every kept file against its checksum; exit 1 when one is damaged."""
    from kedit_locate.statistics import kept_statistics, show_rows

    rows = kept_statistics()
    show_rows(rows, as_json)
    if any(row.damaged for row in rows):
        raise typer.Exit(1)


@stats.command(name="import")
def import_(
    context: typer.Context,
    model: Model,
    file: Annotated[
        Path, typer.Argument(help="The .npz of ROME or MEMIT, with mom2.mom2 and mom2.count.")
    ],
    layer: Annotated[int, typer.Option("--layer", min=0, help="The layer it belongs to.")],
    corpus: Corpus = None,
    tokens: Tokens = None,
    length: Length = 64,
    short: Short = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Keep statistics that ROME's code wrote; edits with the same settings will use them."""
    from kedit_locate.statistics import import_statistics, show_rows

    plugins: Plugins = context.obj
    wanted = Statistics(corpus=corpus, tokens=tokens, length=length, short=short)
    show_rows([import_statistics(plugins, model, file, layer, wanted, dtype, device)], as_json)
