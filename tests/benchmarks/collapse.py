"""How streams of edits end: what each way of editing keeps, every fifty edits, and a picture of it.

``python tests/benchmarks/collapse.py FILE.jsonl [--model atlas:llama] [--edits 300] [--only NAME]...`` makes
the runs of ``RUNS`` that the file does not hold yet and appends one line for each judgement, so that it can
be stopped and called again. ``python tests/benchmarks/collapse.py FILE.jsonl --plot FILE.svg`` draws them;
with ``--only NAME`` it draws what becomes of that one run on every model that the file holds.

A line says after how many edits, in percent by exact match: how many of all edits so far the model still
says (reliability), on paraphrases too (generalization), which near neighbours and unrelated kept facts it
says as before; perplexity of sentences about kept facts and norm growth of the touched weights (drift), both
against the start; and with what probability the searches of the last fifty edits ended (searched). Where
that stays near one while reliability falls, the search is fitted to a model that is falling apart.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import exp
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
import typer
from attrs import asdict, frozen
from locate_on_atlas import ORIGINAL, Bench, held_out
from matplotlib.figure import Figure

from kedit_core import Delta, EditRequest
from kedit_core.cli.screen import BarProgress

PMET_ORIGINAL = {**ORIGINAL, "search": {**ORIGINAL["search"], "clamp": 4.0}}
HISTORY = {"history": "exact"}


@frozen(kw_only=True)
class Run:
    """One way of editing."""

    method: str
    settings: Mapping[str, Any]
    batch: int | Literal["all"] = 1


RUNS: Mapping[str, Run] = {
    "ROME": Run(method="rome", settings={}),
    "MEMIT, original": Run(method="memit", settings=ORIGINAL),
    "MEMIT, original with history": Run(method="memit", settings={**ORIGINAL, **HISTORY}),
    "PMET, original": Run(method="pmet", settings=PMET_ORIGINAL),
    "PMET, original with history": Run(method="pmet", settings={**PMET_ORIGINAL, **HISTORY}),
    "MEMIT, original, tens": Run(method="memit", settings=ORIGINAL, batch=10),
    "MEMIT, original, hundreds": Run(method="memit", settings=ORIGINAL, batch=100),
    "MEMIT, original, at once": Run(method="memit", settings=ORIGINAL, batch="all"),
    "MEMIT, no history": Run(method="memit", settings={"history": "none"}),
    "MEMIT": Run(method="memit", settings={}),
    "PMET": Run(method="pmet", settings={}),
    "MEMIT, at once": Run(method="memit", settings={}, batch="all"),
}


@frozen(kw_only=True)
class Judged:
    """What a run is worth after so many edits; None is what a row that was read off a picture lacks."""

    model: str
    run: str
    edits: int
    reliability: float
    generalization: float | None
    near: float | None
    kept: float
    perplexity: float
    drift: float | None
    searched: float
    seconds: float | None


def judged(
    name: str, run: Run, bench: Bench, facts: Sequence[EditRequest], every: int
) -> Iterator[Judged]:
    """Yield a judgement of all edits so far after every so many; of a run at once, of that many at once."""
    seconds = 0.0
    for done, end in pairwise(range(0, len(facts) + 1, every)):
        if run.batch == "all":
            new, size, seconds = facts[:end], end, 0.0
        else:
            new, size = facts[done:end], run.batch
        probabilities: list[float] = []
        started = perf_counter()
        for start in range(0, len(new), size):
            probabilities += searched(bench.editor.edit(new[start : start + size]))
        seconds += perf_counter() - started
        found = bench.judge(facts[:end], seconds)
        yield Judged(
            model=bench.model,
            run=name,
            edits=end,
            **found.scores,
            perplexity=found.perplexity,
            drift=bench.drift(),
            searched=100 * mean(probabilities),
            seconds=seconds,
        )
        if run.batch == "all":
            bench.editor.undo()


def searched(delta: Delta) -> list[float]:
    """Return with what probability the search for each value ended."""
    found = delta.provenance.notes["target_nll"]
    return [exp(-nll) for nll in (found if isinstance(found, list | tuple) else [found])]


def read(path: Path) -> list[Judged]:
    """Return what a file holds; nothing when it is not there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Judged(**json.loads(line)) for line in lines]


def make(path: Path, model: str, edits: int, every: int, seed: int, only: Sequence[str]) -> None:
    """Make the runs that the file does not hold to their end."""
    for name, run in RUNS.items():
        own = [one for one in read(path) if (one.model, one.run) == (model, name)]
        if (only and name not in only) or any(one.edits >= edits for one in own):
            continue
        step = max(every, 100 if run.batch == "all" else run.batch)
        with TemporaryDirectory() as folder:
            bench = Bench(model, run.method, run.settings, held_out(Path(folder)), BarProgress())
            for one in judged(name, run, bench, bench.facts(edits, seed), step):
                if one.edits in {earlier.edits for earlier in own}:
                    continue
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(one)) + "\n")
                sys.stderr.write(f"{one}\n")


PANELS = {
    "reliability": "edits still said (%)",
    "searched": "last probability of the search (%)",
    "kept": "unrelated facts said as before (%)",
    "perplexity": "perplexity, times the start",
}
COLUMNS = {"one by one": lambda run: run.batch == 1, "in batches": lambda run: run.batch != 1}
COLOURS = {
    "ROME": "#000000",
    "MEMIT, original": "#d55e00",
    "MEMIT, original with history": "#e69f00",
    "PMET, original": "#56b4e9",
    "PMET, original with history": "#009e73",
    "MEMIT, original, tens": "#56b4e9",
    "MEMIT, original, hundreds": "#009e73",
    "MEMIT, original, at once": "#e69f00",
    "MEMIT, no history": "#999999",
    "MEMIT": "#0072b2",
    "PMET": "#cc79a7",
    "MEMIT, at once": "#cc79a7",
}
"""Told apart by colour-blind people too (Okabe and Ito, 2008)."""
ALSO = ("MEMIT, original", "MEMIT")
"""Drawn beside the batches too, as what they are to be compared with."""


def plot(found: Sequence[Judged], path: Path) -> None:
    """Draw a row of panels a measure: streams of single edits on the left, batches on the right."""
    figure = Figure(figsize=(9, 10.5), layout="constrained")
    panels = figure.subplots(len(PANELS), len(COLUMNS), sharex=True, sharey="row")
    for (heading, belongs), column in zip(COLUMNS.items(), panels.T, strict=True):
        names = [
            name
            for name, run in RUNS.items()
            if (belongs(run) or name in ALSO) and any(one.run == name for one in found)
        ]
        for axes, (measure, title) in zip(column, PANELS.items(), strict=True):
            for name in names:
                draw(axes, name, measure, found)
            axes.set_title(f"{heading}: {title}", fontsize=10, loc="left")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if measure != "perplexity":
                axes.set_ylim(0, 104)
            axes.set_xlim(left=0)
        column[-1].set_xlabel("edits so far", fontsize=9)
        place = f"outside lower {'left' if belongs(RUNS['ROME']) else 'right'}"
        handles, labels = column[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc=place, ncols=2, frameon=False, fontsize=8)
    figure.suptitle(f"{found[0].model}: what is left of all edits, by the way they were made")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def draw(axes: Any, name: str, measure: str, found: Sequence[Judged]) -> None:
    """Draw a run's line into a panel."""
    own = sorted((one for one in found if one.run == name), key=lambda one: one.edits)
    axes.plot(
        [one.edits for one in own],
        [getattr(one, measure) for one in own],
        label=name,
        color=COLOURS[name],
        linestyle="--" if "original" in name else "-",
        linewidth=1.4 if "original" in name or name in ("ROME", "MEMIT, no history") else 2.4,
        marker=".",
    )


SCORES = {
    "reliability": ("edits still said", "#0072b2"),
    "generalization": ("their paraphrases", "#56b4e9"),
    "near": ("near neighbours as before", "#009e73"),
    "kept": ("unrelated facts as before", "#d55e00"),
}


def plot_one(found: Sequence[Judged], path: Path) -> None:
    """Draw all scores of one run, a panel a model."""
    models = sorted({one.model for one in found})
    figure = Figure(figsize=(4.5 * len(models), 4), layout="constrained")
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        own = sorted((one for one in found if one.model == model), key=lambda one: one.edits)
        for measure, (title, colour) in SCORES.items():
            values = [getattr(one, measure) for one in own]
            axes.plot([one.edits for one in own], values, label=title, color=colour, marker=".")
        last = own[-1]
        axes.set_title(f"{model} (perplexity × {last.perplexity:.2f} at {last.edits})", fontsize=10)
        axes.set(ylim=(0, 104), xlabel="edits so far")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("%")
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(f"{found[0].run}, one edit after the other")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def main(
    path: Path,
    model: str = "atlas:llama",
    edits: int = 300,
    every: int = 50,
    seed: int = 0,
    only: Annotated[list[str] | None, typer.Option()] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot")] = None,
    threads: int = 1,
) -> None:
    """Make the runs, or draw those that were made."""
    torch.set_num_threads(threads)
    if plot_to is None:
        make(path, model, edits, every, seed, only or [])
    elif only:
        plot_one([one for one in read(path) if one.run in only], plot_to)
    else:
        plot([one for one in read(path) if one.model == model], plot_to)


if __name__ == "__main__":
    typer.run(main)
