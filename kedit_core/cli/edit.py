"""``kedit edit``: make edits and save them as deltas."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kedit_core.cli import tell
from kedit_core.cli.opening import (
    Chat,
    Deltas,
    Device,
    Dtype,
    Json,
    Layout,
    Limit,
    Model,
    Requests,
    SkipBad,
    named_pieces,
    open_editor,
    read,
)
from kedit_core.cli.screen import counted, print_json, screen
from kedit_core.config import merged, parse_settings, read_mapping
from kedit_core.errors import DeltaError, RequestError
from kedit_core.files import check_writable
from kedit_core.methods import MethodInfo
from kedit_core.plugins import Plugins
from kedit_core.requests import EditRequest


def run(
    context: typer.Context,
    model: Model,
    method: Annotated[str, typer.Option("--method", help="Name of the method.")],
    out: Annotated[Path, typer.Option("--out", help="The delta file to write.")],
    requests: Requests = None,
    prompt: Annotated[
        str | None, typer.Option(help="One edit: its prompt, {} for the subject.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="One edit: whom it is about.")] = None,
    target: Annotated[str | None, typer.Option(help="One edit: the new answer.")] = None,
    delta: Deltas = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the method's settings; repeatable."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file of settings.")] = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    chat: Chat = False,
    layout: Layout = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Edit facts of a model and save the deltas. The model's own files are never changed."""
    plugins: Plugins = context.obj
    info = plugins.info(method)
    asked = _asked(plugins, requests, prompt, subject, target, limit, skip_bad)
    try:
        check_writable(out)
    except OSError as error:
        raise DeltaError(str(out), f"cannot be written ({error.strerror})") from None
    _check_replaceable(out)
    given = merged(read_mapping(config) if config else {}, parse_settings(settings or []))
    options = {"method": method, "config": given or None, "chat": chat}
    options["layout"] = named_pieces(layout)
    editor = open_editor(plugins, model, delta, dtype, device, **options)
    _check_all(editor, asked, info, plugins)
    prompts = [request.prompt for request in asked]
    before = editor.complete(prompts)
    _note_known(asked, before)
    made = _edit_all(editor, asked, info, out)
    rows = list(zip(asked, before, editor.complete(prompts), strict=True))
    if as_json:
        print_json(_document(out, made, rows))
    else:
        _show(model, out, rows)


def _check_replaceable(out: Path) -> None:
    from kedit_core.delta_files import check_replaceable

    check_replaceable(out)


def _check_all(editor: Any, asked: list[EditRequest], info: MethodInfo, plugins: Plugins) -> None:
    """See that every edit can be made before the first one is."""
    from kedit_core.computing import check_model, check_requests

    seen: set[str] = set()
    for request in asked:
        check_requests([request], info, editor.deltas, plugins.kind_of)
        if request.id in seen:
            raise RequestError(f"request {request.id} ({request.prompt!r}) is given twice")
        seen.add(request.id)
    check_model(editor.model, editor.tokenizer, asked, chat=editor.chat)


def _note_known(asked: list[EditRequest], before: list[str]) -> None:
    """Say which edits ask for what the model says anyway; they are made all the same."""
    for request, said in zip(asked, before, strict=True):
        if _says(said, request.target_new):
            tell(f"note: the model says {request.target_new!r} after {request.prompt!r} already")


def _says(text: str, target: str) -> bool:
    """Tell whether a text begins with a target, and the target ends where a word does."""
    rest = text[len(target) :]
    return text.startswith(target) and not (target[-1].isalnum() and rest[:1].isalnum())


def _edit_all(editor: Any, asked: list[EditRequest], info: MethodInfo, out: Path) -> list[Any]:
    """Edit everything, and save what is done also when something stops it."""
    batches = [asked] if info.batched else [[request] for request in asked]
    made: list[Any] = []
    try:
        with editor.progress.task("editing", len(asked), "edits") as advance:
            for batch in batches:
                made.append(editor.edit(batch))
                advance(len(batch))
    finally:
        if made:
            editor.save(out)
        if 0 < len(made) < len(batches):
            tell(f"stopped; {len(made)} of {len(batches)} edits are saved in {out}")
    return made


def _asked(
    plugins: Plugins,
    source: str | None,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    limit: int | None,
    skip_bad: bool,
) -> list[EditRequest]:
    if source is not None:
        if (prompt, subject, target) != (None, None, None):
            raise RequestError("--requests and --prompt are two ways to ask; use one")
        return read(plugins, source, limit, skip_bad)
    if prompt is None or target is None:
        raise RequestError("say what to edit: --requests FILE, or --prompt, --subject and --target")
    return [EditRequest(prompt=prompt, subject=subject, target_new=target)]


def _document(
    out: Path, made: list[Any], rows: list[tuple[EditRequest, str, str]]
) -> dict[str, Any]:
    return {
        "out": str(out),
        "deltas": [
            {
                "id": delta.id,
                "requests": [r.id for r in delta.requests],
                "notes": delta.provenance.notes,
            }
            for delta in made
        ],
        "edits": [
            {
                "id": request.id,
                "prompt": request.prompt,
                "target_new": request.target_new,
                "before": before,
                "after": after,
            }
            for request, before, after in rows
        ],
    }


def _show(model: str, out: Path, rows: list[tuple[EditRequest, str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PROMPT", "BEFORE", "AFTER", "ASKED FOR"):
        table.add_column(heading, overflow="fold")
    for request, before, after in rows:
        holds = after.startswith(request.target_new)
        style = "green" if holds else "yellow"
        said = f"[{style}]{escape(after)}[/{style}]"
        table.add_row(escape(request.prompt), escape(before), said, escape(request.target_new))
    console = screen()
    console.print(table)
    console.print(
        f"\n{counted(len(rows), 'edit')} saved in {out}; the model's own files are as they were",
        markup=False,
    )
    console.print(f"next: kedit evaluate {model} --delta {out} --requests FILE", markup=False)
