"""How many facts a locate-then-edit method carries on the atlas models, beside the original's settings.

``python tests/benchmarks/locate_on_atlas.py MODEL PROTOCOL [--edits N] [--method memit] [--seed S]
[--orders K [--first F]] [--set key=value]... [--original] [--json]`` where the protocol is

* ``restored``: each edit alone, judged and taken out again;
* ``mass``: all edits in one batch, each judged;
* ``stream``: one edit after the other, all so far judged at the end of each 100.

Scores are means in percent, by exact match: the edits, their paraphrases, near neighbours (same old answer)
and unrelated kept facts, of the last two those that the unedited model knows; and perplexity of sentences
about kept facts against its start. ``--original`` runs the published steps instead: one large write, no
history. Orders are seeded shuffles of the same facts; ``--first`` leaves out those that were run before.
Exits 1 when a bar is missed.
"""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
import typer
from attrs import evolve, frozen
from rich.table import Table

from kedit_atlas.world import KEPT, load_world
from kedit_core import Editor, EditRequest, Plugins
from kedit_core.cli.screen import BarProgress, print_json, quiet_transformers, screen
from kedit_core.config import merged, parse_settings
from kedit_core.progress import Progress

SOURCE = "atlas:editable"
COLUMNS = {
    "reliability": "reliability.exact",
    "generalization": "generalization.exact",
    "near": "locality.exact:near",
    "kept": "locality.exact:kept",
}
SCORES: Mapping[str, Mapping[str, Any]] = {
    "reliability.exact": {},
    "generalization.exact": {},
    "locality.exact": {"known": True},
}
ORIGINAL = {
    "passes": 1,
    "shrink": 1.0,
    "history": "none",
    "keys": "half",
    "penalty": 100.0,
    "context": {"lengths": [10], "count": 5},
    "search": {
        "direction": "adam",
        "steps": 25,
        "lr": 0.5,
        "clamp": 3.0,
        "decay": 0.1,
        "stop": 0.05,
    },
    "statistics": {"metric": "moments", "per_feature": 10},
}
BARS: Mapping[tuple[str, str, int], tuple[float, ...]] = {
    ("atlas:llama", "restored", 1): (97, 93, 97.5),
    ("atlas:gpt2", "restored", 1): (96, 91, 97.5),
    ("atlas:llama", "mass", 100): (95, 80, 88, 97),
    ("atlas:gpt2", "mass", 100): (95, 80, 84, 92),
    ("atlas:llama", "mass", 500): (85, 70, 65, 80),
    ("atlas:gpt2", "mass", 500): (85, 68, 60, 72),
    ("atlas:llama", "stream", 300): (93, 77, 77, 91),
    ("atlas:gpt2", "stream", 300): (90, 72, 72, 88),
    ("atlas:llama", "stream", 500): (88, 73, 62, 80),
}

Protocol = Literal["restored", "mass", "stream"]


@frozen(kw_only=True)
class Judged:
    """Scores in percent after so many edits, perplexity as a multiple of its start, and seconds."""

    edits: int
    scores: Mapping[str, float]
    perplexity: float
    seconds: float


class Bench:
    """A model of the atlas, a method, and the facts to edit."""

    def __init__(
        self, model: str, method: str, settings: Mapping[str, Any], text: Path, progress: Progress
    ) -> None:
        self.model = model
        self._plugins = Plugins.installed()
        with quiet_transformers():
            self.editor = Editor.from_pretrained(
                model, method, dict(settings), plugins=self._plugins, progress=progress
            )
        self._metrics = {**SCORES, "perplexity": {"text": str(text)}}
        self._start = self.editor.evaluate([], {"perplexity": {"text": str(text)}}).means()

    def facts(self, edits: int, seed: int) -> list[EditRequest]:
        """Return a seeded sample, without the probes that are not judged here."""
        found = list(self._plugins.call_all("read_requests", source=SOURCE))
        chosen = random.Random(seed).sample(found, min(edits, len(found)))
        return [evolve(request, portability=()) for request in chosen]

    def judge(self, facts: Sequence[EditRequest], seconds: float) -> Judged:
        """Judge the model as it is."""
        means = self.editor.evaluate(facts, self._metrics).means()
        return Judged(
            edits=len(facts),
            scores={
                name: 100 * means[metric] for name, metric in COLUMNS.items() if metric in means
            },
            perplexity=means["perplexity"] / self._start["perplexity"],
            seconds=seconds,
        )

    def drift(self) -> float:
        """Return by which share the norm of the touched weights has grown."""
        return self.editor.evaluate([], {"drift": {}}).means().get("drift", 0.0)

    def restored(self, facts: Sequence[EditRequest]) -> Iterator[Judged]:
        """Yield one judgement: the means over edits, each alone in the model."""
        found, seconds = [], 0.0
        for fact in facts:
            started = perf_counter()
            self.editor.edit(fact)
            seconds += perf_counter() - started
            found.append(self.judge([fact], 0.0))
            self.editor.undo()
        scores = {
            name: mean(one.scores[name] for one in found if name in one.scores) for name in COLUMNS
        }
        worst = max(one.perplexity for one in found)
        yield Judged(edits=1, scores=scores, perplexity=worst, seconds=seconds / len(facts))

    def mass(self, facts: Sequence[EditRequest]) -> Iterator[Judged]:
        """Yield one judgement of all edits made at once."""
        started = perf_counter()
        self.editor.edit(facts)
        yield self.judge(facts, perf_counter() - started)
        self.editor.undo()

    def stream(self, facts: Sequence[EditRequest], every: int = 100) -> Iterator[Judged]:
        """Yield a judgement of all edits so far after each hundred and after the last."""
        seconds = 0.0
        for number, fact in enumerate(facts, 1):
            started = perf_counter()
            self.editor.edit(fact)
            seconds += perf_counter() - started
            if number % every == 0 or number == len(facts):
                yield self.judge(facts[:number], seconds)
        while self.editor.deltas:
            self.editor.undo()


def held_out(folder: Path) -> Path:
    """Write sentences about kept facts into a file, for the perplexity."""
    facts = random.Random(0).sample(load_world().of(KEPT), 200)
    path = folder / "kept.txt"
    path.write_text(" ".join(f"{fact.openings[0]} {fact.object}." for fact in facts))
    return path


def missed(model: str, protocol: str, found: Sequence[Judged]) -> list[str]:
    """Return the bars that the mean over orders misses, and the orders that lie 3 points below."""
    complaints = []
    for edits in sorted({one.edits for one in found}):
        bars = BARS.get((model, protocol, edits))
        own = [one for one in found if one.edits == edits]
        for name, bar in zip(COLUMNS, bars or (), strict=False):
            values = [one.scores[name] for one in own]
            if mean(values) < bar or min(values) < bar - 3:
                complaints.append(f"{edits} edits, {name}: {mean(values):.2f} of {bar}")
    return complaints


def main(
    model: str,
    protocol: str,
    edits: int = 100,
    method: str = "memit",
    seed: int = 0,
    orders: int = 1,
    first: int = 0,
    settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    original: bool = False,
    threads: int = 1,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Run a protocol and print its scores."""
    torch.set_num_threads(threads)
    wanted = merged(ORIGINAL if original else {}, parse_settings(settings or []))
    rows: list[tuple[int, Judged]] = []
    with TemporaryDirectory() as folder:
        bench = Bench(model, method, wanted, held_out(Path(folder)), BarProgress())
        facts = bench.facts(edits, seed)
        for order in range(first, orders):
            some = list(facts) if order == 0 else random.Random(order).sample(facts, len(facts))
            for judged in getattr(bench, protocol)(some):
                rows.append((order, judged))
                sys.stderr.write(f"{judged}\n")
    complaints = [] if original else missed(model, protocol, [one for _, one in rows])
    if as_json:
        keys = ("edits", "scores", "perplexity", "seconds")
        print_json([{"order": n, **{k: getattr(one, k) for k in keys}} for n, one in rows])
    else:
        show(model, protocol, rows)
        for complaint in complaints:
            screen().print(f"missed: {complaint}")
    sys.exit(bool(complaints))


def show(model: str, protocol: str, rows: Sequence[tuple[int, Judged]]) -> None:
    """Print the scores as a table."""
    table = Table(title=f"{model}, {protocol}", box=None, pad_edge=False)
    for heading in ("ORDER", "EDITS", *(name.upper() for name in COLUMNS), "PERPLEXITY", "SECONDS"):
        table.add_column(heading, justify="right")
    for order, one in rows:
        scores = (f"{one.scores[name]:.2f}" for name in COLUMNS)
        cells = (f"{one.perplexity:.3f}", f"{one.seconds:.1f}")
        table.add_row(str(order), str(one.edits), *scores, *cells)
    screen().print(table)


if __name__ == "__main__":
    typer.run(main)
