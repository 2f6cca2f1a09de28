"""What WISE does on an atlas model, with kedit's settings or the published ones.

``python tests/benchmarks/wise_on_atlas.py MODEL [--edits 100] [--first N] [--batch all] [--every N]
[--published] [--set key=value]... [--seed S] [--json]``

Scores are in percent: edits and paraphrases by exact match; near neighbours (same relation, same old answer)
and unrelated kept facts by exact match, of those that the unedited model knows; general sentences, about kept
facts, that are left to the main weights, bit for bit, first those that name no edited subject, then all. Then
how many prompts of each kind go to the side memory, how many meet their own edit, and seconds. ``--every N``
also judges all edits so far after every N of them, and prints how each N fare at each judgement; ``--first N``
makes no more than the first N of the edits that were drawn.
``--published`` trains each edit by itself, as the original does (``PUBLISHED``). Exits 1 when a bar is missed.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from math import isnan
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from attrs import evolve, frozen
from rich.table import Table

from kedit_atlas.world import KEPT, load_world
from kedit_core import Editor, EditRequest, Plugins, Schedule, retention
from kedit_core.cli.screen import BarProgress, print_json, quiet_transformers, screen
from kedit_core.config import merged, parse_settings
from kedit_core.forgetting import Retention
from kedit_core.progress import Progress

SOURCE = "atlas:editable"
SENTENCES = 400
COLUMNS = {
    "edits": "reliability.exact",
    "paraphrases": "generalization.exact",
    "near": "locality.exact:near",
    "kept": "locality.exact:kept",
}
SCORES: Mapping[str, Mapping[str, Any]] = {
    "reliability.exact": {},
    "generalization.exact": {},
    "locality.exact": {"known": True},
}
PUBLISHED = {
    "writer": "descent",
    "routes": {"measure": "mean", "threshold": "activation", "choose": "most"},
    "shards": {"size": 500, "merge": "ties", "every": 1000},
}
"""As published for 7B models; layer, mask, steps and margins are the defaults of ``descent``."""

BARS: Mapping[tuple[str, int], Mapping[str, float]] = {
    ("atlas:llama", 100): {"edits": 76, "paraphrases": 32, "near": 90, "kept": 97, "text": 97}
}


@frozen(kw_only=True)
class Judged:
    """What a memory is worth.

    Attributes:
        scores: in percent.
        inside: shares of prompts that go to the side memory, in percent.
        seconds: an edit, judging not counted.
        forgetting: how earlier edits fare at each later judgement, if that was asked for.
    """

    scores: Mapping[str, float]
    inside: Mapping[str, float]
    seconds: float
    forgetting: Retention | None = None


class Bench:
    """An atlas model with WISE, and facts to edit."""

    def __init__(self, model: str, settings: Mapping[str, Any], progress: Progress) -> None:
        self._plugins = Plugins.installed()
        with quiet_transformers():
            self.editor = Editor.from_pretrained(
                model, "wise", dict(settings), plugins=self._plugins, progress=progress
            )

    def facts(self, edits: int, seed: int) -> list[EditRequest]:
        """Return a seeded sample, its neighbours without those that are edits themselves."""
        found = list(self._plugins.call_all("read_requests", source=SOURCE))
        chosen = random.Random(seed).sample(found, min(edits, len(found)))
        prompts = {one.prompt for one in chosen}
        return [
            evolve(
                one,
                portability=(),
                locality=[probe for probe in one.locality if probe.prompt not in prompts],
            )
            for one in chosen
        ]

    def judged(self, facts: Sequence[EditRequest], batch: int, every: int | None = None) -> Judged:
        """Make the edits in batches and judge them all, on reliability after ``every`` so many too."""
        started = perf_counter()
        schedule = Schedule(batch_size=batch, interval=every or "end", evaluate_on="all")
        metrics = {"reliability.exact": {}} if every else SCORES
        judgements = list(self.editor.stream(facts, schedule, metrics=metrics))
        seconds = perf_counter() - started - sum(one.report.seconds for one in judgements)
        last = self.editor.evaluate(facts, SCORES) if every else judgements[-1].report
        means = last.means()
        scores = {name: 100 * means[metric] for name, metric in COLUMNS.items() if metric in means}
        said = sentences()
        subjects = [str(one.subject) for one in facts]
        apart = [one for one in said if not any(subject in one for subject in subjects)]
        scores |= {"text": 100 - self._inside(apart), "all text": 100 - self._inside(said)}
        return Judged(
            scores=scores,
            inside=self._routed(facts),
            seconds=seconds / len(facts),
            forgetting=retention(judgements) if every else None,
        )

    def _routed(self, facts: Sequence[EditRequest]) -> dict[str, float]:
        near = {p.prompt for one in facts for p in one.locality if p.group == "near"}
        paraphrases = [(text, one.id) for one in facts for text in one.paraphrases]
        met = self.editor.scope([text for text, _ in paraphrases]).requests
        own = sum(request == wanted for request, (_, wanted) in zip(met, paraphrases, strict=True))
        return {
            "edits": self._inside([one.prompt for one in facts]),
            "paraphrases": self._inside([text for text, _ in paraphrases]),
            "own edit": 100 * own / len(paraphrases),
            "near": self._inside(sorted(near)),
        }

    def _inside(self, prompts: Sequence[str]) -> float:
        """Return how many prompts go to the side memory, in percent."""
        met = self.editor.scope(prompts).requests
        return 100 * sum(one is not None for one in met) / len(met)


def sentences() -> list[str]:
    """Return sentences about facts that no edit is about."""
    facts = random.Random(0).sample(load_world().of(KEPT), SENTENCES)
    return [f"{fact.openings[0]} {fact.object}." for fact in facts]


def missed(model: str, edits: int, found: Judged) -> list[str]:
    """Return the bars that are missed."""
    bars = BARS.get((model, edits), {})
    return [
        f"{name}: {found.scores[name]:.1f} of {bar}"
        for name, bar in bars.items()
        if found.scores[name] < bar
    ]


def main(
    model: str,
    edits: int = 100,
    first: int | None = None,
    batch: str = "all",
    every: int | None = None,
    published: bool = False,
    settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Edit, judge and print the scores."""
    torch.set_num_threads(1)
    wanted = merged(PUBLISHED if published else {}, parse_settings(settings or []))
    bench = Bench(model, wanted, BarProgress())
    facts = bench.facts(edits, seed)[:first]
    size = len(facts) if batch == "all" else int(batch)
    found = bench.judged(facts, 1 if published and batch == "all" else size, every)
    complaints = [] if published else missed(model, len(facts), found)
    if as_json:
        said = {"scores": found.scores, "inside": found.inside, "seconds": found.seconds}
        matrix = None if found.forgetting is None else found.forgetting.matrix
        print_json({**said, "forgetting": matrix})
    else:
        show(f"{model}, {len(facts)} edits, {found.seconds:.2f} s an edit", found.scores)
        show("to the side memory", found.inside)
        if found.forgetting is not None:
            show_forgetting(found.forgetting)
        for complaint in complaints:
            screen().print(f"missed: {complaint}")
    sys.exit(bool(complaints))


def show(title: str, row: Mapping[str, float]) -> None:
    """Print one table of one row."""
    table = Table(title=title, box=None, pad_edge=False)
    for heading in row:
        table.add_column(heading.upper(), justify="right")
    table.add_row(*(f"{value:.1f}" for value in row.values()))
    screen().print(table)


def show_forgetting(found: Retention) -> None:
    """Print a row a judgement and a column a block of edits, in percent."""
    table = Table(title="edits of each block that hold", box=None, pad_edge=False)
    for heading in ("AFTER", *(f"TO {at}" for at in found.at)):
        table.add_column(heading, justify="right")
    for at, row in zip(found.at, found.matrix, strict=True):
        table.add_row(str(at), *("" if isnan(one) else f"{100 * one:.0f}" for one in row))
    screen().print(table)


if __name__ == "__main__":
    typer.run(main)
