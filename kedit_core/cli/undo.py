"""``kedit undo``: take edits out of a run, and restore a checkpoint from its originals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict

from kedit_core.cli import tell
from kedit_core.cli.opening import Json
from kedit_core.cli.screen import BarProgress, counted, print_json, quiet_transformers, screen
from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins

if TYPE_CHECKING:
    from kedit_core.run_originals import Restored
    from kedit_core.run_undo import Undone


def run(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    delta: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="A delta, as kedit log --cell lists them; default: the newest."
        ),
    ] = None,
    cell: Annotated[
        str | None, typer.Option("--cell", help="Which cell, where the run has several.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Take all edits out; of every cell unless one is named.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="With --all: an edited checkpoint, to be restored from the originals."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="With --model: the folder to write; it must be new."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take an edit out of a run's state, or all; with --model restore an edited checkpoint."""
    _check(delta, model, out, everything=everything)
    plugins: Plugins = context.obj
    # Not earlier: they load torch.
    from kedit_core.run_originals import restore
    from kedit_core.run_undo import undo, undo_all

    restored: Restored | None = None
    undone: tuple[Undone, ...]
    with quiet_transformers():
        if not everything:
            undone = (undo(run, delta, cell=cell, plugins=plugins, progress=BarProgress()),)
        else:
            if model is not None and out is not None:
                restored = restore(run, model, out, cell=cell, plugins=plugins)
            undone = undo_all(run, cell)
    if as_json:
        print_json(_document(restored, undone))
        return
    if restored is not None:
        _show_restored(restored)
    for done in undone:
        _show(done)


def _document(restored: "Restored | None", undone: tuple["Undone", ...]) -> dict[str, Any]:
    document: dict[str, Any] = {"undone": [asdict(one) for one in undone]}
    if restored is not None:
        document["restored"] = asdict(restored) | {"path": str(restored.path)}
    return document


def _check(delta: str | None, model: str | None, out: Path | None, *, everything: bool) -> None:
    """Refuse options that say nothing together."""
    if everything and delta is not None:
        raise KeditError(f"--all takes every edit out; leave {delta!r} or --all away")
    if not everything and (model is not None or out is not None):
        raise KeditError(
            "--model and --out restore a checkpoint, which takes every edit out: add --all"
        )
    if (model is None) != (out is None):
        raise KeditError("--model names the edited checkpoint and --out what to write; give both")


def _show(done: "Undone") -> None:
    again = f" ({counted(done.made_again, 'delta')} made again for it)" if done.made_again else ""
    out = f"delta {done.deltas[0]}" if len(done.deltas) == 1 else counted(len(done.deltas), "delta")
    what = f"{out} out of force" if done.deltas else "nothing was in force"
    line = f"{done.cell}: {what}, {done.left} left{again}"
    screen().print(line, markup=False, soft_wrap=True)


def _show_restored(done: "Restored") -> None:
    console = screen()
    exact = len(done.weights) - len(done.cast)
    lines: list[Any] = [f"{done.path} holds {done.model} as it was before the run:"]
    if exact:
        lines.append(f"  {counted(exact, 'weight')} as the digests of the originals say")
    if done.cast:
        lines.append(
            f"  {counted(len(done.cast), 'weight')} cast to the checkpoint's dtype, which is not the "
            f"one that was edited: {done.cast[0]}{', …' if len(done.cast) > 1 else ''}"
        )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if done.foreign:
        tell(
            f"warning: {counted(len(done.foreign), 'weight')} held what no edit of the run left there "
            f"({done.foreign[0]}); is it an export of this run?"
        )
