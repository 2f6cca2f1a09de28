"""Options that several commands share: opening a model, its deltas and its requests."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kedit_core.cli import tell
from kedit_core.errors import KeditError, ModelError, RequestError
from kedit_core.plugins import Plugins
from kedit_core.requests import EditRequest

Model = Annotated[
    str, typer.Argument(help="A hub id, a local folder, or a plugin's own name such as atlas:gpt2.")
]
Requests = Annotated[
    str | None,
    typer.Option(
        "--requests", help="A file of JSON lines, or a plugin's own name such as atlas:editable."
    ),
]
Deltas = Annotated[
    list[Path] | None,
    typer.Option("--delta", help="A delta file, RUN or RUN/CELL to put in first; may be repeated."),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out records that cannot be read, and say how many."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Take only the first N requests.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Render prompts through the chat template.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16, float16; default: the checkpoint's."),
]
Device = Annotated[str | None, typer.Option("--device", help="For example cpu or cuda:0.")]
Layout = Annotated[
    list[str] | None,
    typer.Option(
        "--layout",
        help="PIECE=PATH of a piece that is not found by itself, for example "
        "down=model.layers.{}.mlp.w2; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

_SHOWN = 3
"""Complaints about records that are shown when they are left out."""
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def open_editor(
    plugins: Plugins,
    model: str,
    deltas: list[Path] | None,
    dtype: str | None,
    device: str | None,
    **options: Any,
) -> Any:
    """Return an editor of ``model`` with ``deltas`` in force.

    Raises:
        KeditError: the model or a delta cannot be opened.
    """
    import torch

    from kedit_core.cli.screen import BarProgress, quiet_transformers
    from kedit_core.editor import Editor

    if dtype is not None and dtype not in _DTYPES:
        raise KeditError(f"unknown dtype {dtype!r}; {', '.join(_DTYPES)} are known")
    kind = None if dtype is None else getattr(torch, dtype)
    with quiet_transformers():
        editor = Editor.from_pretrained(
            model, dtype=kind, device=device, plugins=plugins, progress=BarProgress(), **options
        )
    for path in deltas or ():
        editor.load(path)
    return editor


def named_pieces(layout: list[str] | None) -> dict[str, str] | None:
    """Return the paths of ``--layout`` by piece, or None when there is none.

    Raises:
        ModelError: one is not of the form PIECE=PATH.
    """
    found: dict[str, str] = {}
    for given in layout or ():
        piece, sign, path = given.partition("=")
        if not (piece and sign and path):
            raise ModelError("--layout", f"{given!r} is not PIECE=PATH; down=PATH names one")
        found[piece] = path
    return found or None


def read(
    plugins: Plugins, source: str, limit: int | None, skip_bad: bool = False
) -> list[EditRequest]:
    """Return the requests of a source, the first ``limit`` of them.

    Args:
        plugins: one of which reads the source.
        source: what ``--requests`` names.
        limit: how many to take; None takes all.
        skip_bad: leave out what cannot be read, and say on stderr how much and why.

    Raises:
        RequestError: one cannot be read, or there is none.
    """
    found: list[EditRequest] = []
    bad: list[RequestError] = []
    for request in plugins.call_all("read_requests", source=source):
        if isinstance(request, RequestError):
            if not skip_bad:
                raise request
            bad.append(request)
            continue
        found.append(request)
        if limit is not None and len(found) == limit:
            break
    _note_skipped(bad)
    if not found:
        raise RequestError(
            "holds no request that can be read" if bad else "holds no request", source
        )
    return found


def _note_skipped(bad: list[RequestError]) -> None:
    from kedit_core.cli.screen import counted

    for error in bad[:_SHOWN]:
        tell(f"note: left out: {error}")
    if bad:
        more = f", {len(bad) - _SHOWN} of them not shown" if len(bad) > _SHOWN else ""
        tell(f"note: {counted(len(bad), 'record')} left out{more}")
