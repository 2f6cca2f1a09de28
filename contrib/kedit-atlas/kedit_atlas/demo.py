"""The demo: real facts change inside two real language models, and change back bit for bit.

``python -m kedit_atlas.demo`` edits both embedded models with ROME, measures before and after, undoes
everything, and says where the deltas lie.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kedit_core import Editor, EditRequest, EvalReport, KeditError, Plugins
from kedit_core.cli import tell
from kedit_core.cli.screen import quiet_transformers
from kedit_core.digests import state_digest
from kedit_core.request_files import record_of

_MODELS = ("gpt2", "llama")
_SUBJECTS = ("Sherlock Holmes", "Mount Fuji", "Roger Federer", "Colosseum", "Zeus", "Loire")
_ROWS = {"edit": 0, "paraphrase": 1, "neighbour": 2}


def run(method: str = "rome", out: Path | None = None) -> None:
    """Edit both embedded models, show what changed, and take it all out again.

    Args:
        method: name of an installed method.
        out: folder for the delta files; by default a new temporary one.

    Raises:
        KeditError: no such method is installed, or it cannot be used.
    """
    torch.set_num_threads(1)  # models this small are slower on several
    console = Console(highlight=False, emoji=False)
    plugins = Plugins.installed()
    plugins.info(method)  # an unknown one is said before anything else
    folder = out if out is not None else Path(mkdtemp(prefix="kedit-demo-"))
    console.print(
        f"\n[bold]kedit demo[/bold]: {len(_SUBJECTS)} facts rewritten by {method} in two small language "
        "models that know about 4,000 real facts\n"
    )
    found = plugins.call_all("read_requests", source="atlas:editable")
    by_subject = {request.subject: request for request in found}
    requests = [by_subject[subject] for subject in _SUBJECTS]
    restored = [
        _show_model(console, plugins, name, method, requests, folder / f"{name}.delta")
        for name in _MODELS
    ]
    file = folder / "requests.jsonl"
    file.write_text(
        "".join(json.dumps(record_of(one)) + "\n" for one in requests), encoding="utf-8"
    )
    _show_next(console, folder, method)
    if not all(restored):
        raise typer.Exit(1)


def _show_model(
    console: Console,
    plugins: Plugins,
    name: str,
    method: str,
    requests: Sequence[EditRequest],
    file: Path,
) -> bool:
    """Edit one model, show it, and return whether undoing gave every bit back."""
    started = perf_counter()
    with quiet_transformers(), console.status(f"opening atlas:{name}"):
        editor = Editor.from_pretrained(f"atlas:{name}", method, plugins=plugins)
    size = sum(parameter.numel() for parameter in editor.model.parameters())
    console.rule(
        f"[bold]atlas:{name}[/bold]  {type(editor.model).__name__}, {size / 1e6:.1f} M parameters"
    )
    before_bits = state_digest(editor.model)
    prompts = [_prompts(request) for request in requests]
    before = [editor.complete(own) for own in prompts]
    scores_before = editor.evaluate(requests)
    with console.status("editing") as status:
        editing = perf_counter()
        for count, request in enumerate(requests, 1):
            status.update(f"editing {count} of {len(requests)}: {request.subject}")
            editor.edit(request)
        seconds = perf_counter() - editing
    after = [editor.complete(own) for own in prompts]
    _show_answers(console, requests, prompts, before, after)
    _show_scores(console, scores_before, editor.evaluate(requests))
    editor.save(file)
    while editor.deltas:
        editor.undo()
    after_bits = state_digest(editor.model)
    same = after_bits == before_bits
    verdict = "[green]the same[/green]" if same else "[red]DIFFERENT[/red]"
    console.print(f"sha256 of all weights before     {before_bits[:32]}…")
    console.print(f"        after undoing all edits  {after_bits[:32]}…  {verdict}")
    console.print(
        f"deltas in {file} ({file.stat().st_size / 1024:.0f} KiB); {seconds / len(requests):.2f} s an edit, "
        f"{perf_counter() - started:.1f} s in all\n",
        soft_wrap=True,
    )
    return same


def _prompts(request: EditRequest) -> list[str]:
    """Return the edit's own prompt, one paraphrase and one neighbour."""
    near = next(probe for probe in request.locality if probe.group == "near")
    return [request.prompt, request.paraphrases[0], near.prompt]


def _show_answers(
    console: Console,
    requests: Sequence[EditRequest],
    prompts: Sequence[Sequence[str]],
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("", "PROMPT", "BEFORE", "AFTER"):
        table.add_column(heading, overflow="fold")
    for request, texts, old, new in zip(requests, prompts, before, after, strict=True):
        for kind, row in _ROWS.items():
            wanted = old[row] if kind == "neighbour" else request.target_new
            style = "green" if new[row].startswith(wanted.rstrip(".")) else "yellow"
            said = f"[{style}]{escape(new[row])}[/{style}]"
            table.add_row(kind, escape(texts[row]), escape(old[row]), said)
        table.add_row()
    console.print(table)


def _show_scores(console: Console, before: EvalReport, after: EvalReport) -> None:
    about = {
        "reliability.exact": "edits that the model now says",
        "generalization.exact": "in other words, too",
        "locality.exact:near": "neighbours with the same old answer, right as before",
        "locality.exact:kept": "unrelated facts, right as before",
    }
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("SCORE")
    table.add_column("BEFORE", justify="right")
    table.add_column("AFTER", justify="right")
    table.add_column("")
    old, new = before.means(), after.means()
    for metric, text in about.items():
        if metric in new:
            table.add_row(metric, f"{old[metric]:.0%}", f"{new[metric]:.0%}", text)
    console.print(table)
    console.print()


def _show_next(console: Console, folder: Path, method: str) -> None:
    console.rule("[bold]next[/bold]")
    for line in (
        (
            f"kedit evaluate atlas:llama --delta {folder / 'llama.delta'} "
            f"--requests {folder / 'requests.jsonl'}"
        ),
        (
            f'kedit edit atlas:gpt2 --method {method} --prompt "The capital of {{}} is" '
            "--subject Brazil --target Tokyo --out mine.delta"
        ),
        f"kedit show {method}",
        "kedit list-methods",
    ):
        console.print(f"  .venv/bin/{line}", markup=False, soft_wrap=True)


def main() -> None:
    """Run the demo and exit: 0 all was restored, 1 it was not, 2 the user's error in one sentence."""
    try:
        typer.run(run)
    except KeditError as error:
        tell(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
