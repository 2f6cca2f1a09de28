"""What reliability costs in unrelated facts: one batch under many penalties and clamps, and a picture of it.

``python tests/benchmarks/front.py FILE.jsonl [--model atlas:gpt2] [--edits 300]`` makes the batches that the
file does not hold yet, each from the unedited model, and appends a line for each.
``python tests/benchmarks/front.py FILE.jsonl --plot FILE.svg`` draws them. ``original`` writes once, with
Adam and moments that are not weighted, as the authors do; ``kedit`` is the default but for what is varied.
"""

import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import torch
import typer
from attrs import asdict, frozen
from locate_on_atlas import ORIGINAL, Bench, held_out
from matplotlib.figure import Figure

from kedit_core.cli.screen import BarProgress
from kedit_core.config import merged

PENALTIES = (100.0, 1000.0, 10000.0)
CLAMPS = {"kedit": (0.3, 0.75, 2.0), "original": (0.75, 3.0)}
SETTINGS = {"kedit": {}, "original": ORIGINAL}
COLOURS = {"kedit": "#0072b2", "original": "#d55e00"}
MARKERS = ("o", "s", "^")


@frozen(kw_only=True)
class Point:
    """Scores in percent of one batch."""

    model: str
    edits: int
    steps: str
    penalty: float
    clamp: float
    reliability: float
    generalization: float
    near: float
    kept: float
    perplexity: float
    seconds: float


def read(path: Path, model: str, edits: int) -> list[Point]:
    """Return what a file holds of a model and so many edits; nothing when it is not there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [Point(**json.loads(line)) for line in lines]
    return [one for one in found if (one.model, one.edits) == (model, edits)]


def make(path: Path, model: str, edits: int, seed: int) -> None:
    """Make the batches that the file does not hold."""
    held = {(one.steps, one.penalty, one.clamp) for one in read(path, model, edits)}
    wanted = [(s, p, c) for s in SETTINGS for p, c in product(PENALTIES, CLAMPS[s])]
    for steps, penalty, clamp in (one for one in wanted if one not in held):
        varied = {"penalty": penalty, "search": {"clamp": clamp}}
        with TemporaryDirectory() as folder:
            settings = merged(SETTINGS[steps], varied)
            bench = Bench(model, "memit", settings, held_out(Path(folder)), BarProgress())
            facts = bench.facts(edits, seed)
            started = perf_counter()
            bench.editor.edit(facts)
            found = bench.judge(facts, perf_counter() - started)
        point = Point(
            model=model,
            edits=edits,
            steps=steps,
            penalty=penalty,
            clamp=clamp,
            **found.scores,
            perplexity=found.perplexity,
            seconds=found.seconds,
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")
        sys.stderr.write(f"{point}\n")


def plot(found: Sequence[Point], path: Path) -> None:
    """Draw kept facts over reliability: a colour for the steps, a shape for the clamp, λ beside it."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for steps, colour in COLOURS.items():
        for clamp, marker in zip(CLAMPS[steps], MARKERS, strict=False):
            own = [one for one in found if (one.steps, one.clamp) == (steps, clamp)]
            own.sort(key=lambda one: one.penalty)
            axes.plot(
                [one.reliability for one in own],
                [one.kept for one in own],
                color=colour,
                marker=marker,
                linestyle="-" if steps == "kedit" else "--",
                linewidth=1.2,
                label=f"{steps}, clamp {clamp:g}",
            )
            for one in own:
                place = (one.reliability, one.kept)
                axes.annotate(
                    f" {one.penalty:g}", place, fontsize=8, color=colour, va="bottom", ha="left"
                )
    axes.set_xlabel("edits that the model says (%)")
    axes.set_ylabel("unrelated facts said as before (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(
        f"{found[0].edits} edits at once on {found[0].model}; beside each point λ", fontsize=11
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def main(
    path: Path,
    model: str = "atlas:gpt2",
    edits: int = 300,
    seed: int = 0,
    plot_to: Annotated[Path | None, typer.Option("--plot")] = None,
    threads: int = 1,
) -> None:
    """Make the batches, or draw those that were made."""
    torch.set_num_threads(threads)
    if plot_to is None:
        make(path, model, edits, seed)
    else:
        plot(read(path, model, edits), plot_to)


if __name__ == "__main__":
    typer.run(main)
