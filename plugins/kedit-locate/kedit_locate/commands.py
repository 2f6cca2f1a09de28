"""``kedit locate``: second moments, built before they are needed; tracing, which shows where to edit."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kedit_core.cli.opening import Chat, Device, Dtype, Json, Layout, Limit, Model, SkipBad, read
from kedit_core.plugins import Plugins
from kedit_locate.config import Statistics

locate = typer.Typer(
    help="Where facts are, and statistics for methods that edit there.", no_args_is_help=True
)
stats = typer.Typer(
    help="Second moments of keys: build, list, verify, import, judge.", no_args_is_help=True
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
Metric = Annotated[
    Literal["moments", "leverage"],
    typer.Option(
        "--metric", help="moments, or leverage: rare keys count for more, as many edits need."
    ),
]
Facts = Annotated[
    str,
    typer.Option(
        "--requests",
        help="A file of JSON lines, or a name such as atlas:editable; target_true is the answer.",
    ),
]
Picture = Annotated[
    Path | None, typer.Option("--out", help="Draw a heat map: a name ending in .svg or .png.")
]
States = Annotated[str, typer.Option("--states", help="What is restored: hidden, mlp, attention.")]
Noise = Annotated[
    float, typer.Option("--noise", min=0, help="Its size, in standard deviations of embeddings.")
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        help="Layers whose MLPs or attentions are restored together; default: a fifth.",
    ),
]


@locate.command()
def trace(
    context: typer.Context,
    model: Model,
    requests: Facts,
    out: Picture = None,
    states: States = "hidden,mlp,attention",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Draws of the noise.")] = 10,
    noise: Noise = 3.0,
    window: Window = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise.")] = 0,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    chat: Chat = False,
    layout: Layout = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show at which tokens and layers facts are looked up, and propose layers to edit."""
    from kedit_locate.heat_map import check_picture
    from kedit_locate.trace_report import Opening, show_report, states_named, traced, write_picture
    from kedit_locate.tracing import Tracing

    plugins: Plugins = context.obj
    if out is not None:
        check_picture(out)
    wanted = states_named(states)
    asked = read(plugins, requests, limit, skip_bad)
    settings = Tracing(samples=samples, noise=noise, window=window, seed=seed)
    opening = Opening(model=model, layout=layout, dtype=dtype, device=device)
    report = traced(plugins, opening, requests, asked, settings, wanted, chat=chat)
    if out is not None:
        write_picture(report, out)
    show_report(report, as_json)


@stats.command()
def build(
    context: typer.Context,
    model: Model,
    layers: Annotated[str, typer.Option("--layers", help="For example 5, 3,4,5 or 3-8.")],
    corpus: Corpus = None,
    tokens: Tokens = None,
    length: Length = 64,
    short: Short = None,
    metric: Metric = "moments",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Collect the second moments of some layers, all in one pass over the text."""
    from kedit_locate.statistics import build_statistics, show_rows

    plugins: Plugins = context.obj
    wanted = Statistics(metric=metric, corpus=corpus, tokens=tokens, length=length, short=short)
    show_rows(build_statistics(plugins, model, layers, wanted, dtype, device), as_json)


@stats.command(name="sufficiency")
def sufficiency_(
    context: typer.Context,
    model: Model,
    layers: Annotated[str, typer.Option("--layers", help="For example 5, 3,4,5 or 3-8.")],
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests", help="Solve for these subjects' keys; default: keys of sampled text."
        ),
    ] = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    corpus: Corpus = None,
    tokens: Tokens = None,
    length: Length = 64,
    short: Short = None,
    metric: Metric = "moments",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say whether more tokens are worth it: how edits from half of the text differ from those from all."""
    from kedit_locate.statistics import show_sufficiency, sufficiency_of

    plugins: Plugins = context.obj
    asked = None if requests is None else read(plugins, requests, limit, skip_bad)
    wanted = Statistics(metric=metric, corpus=corpus, tokens=tokens, length=length, short=short)
    found = sufficiency_of(plugins, model, layers, wanted, asked, dtype, device)
    show_sufficiency(found, as_json)


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
