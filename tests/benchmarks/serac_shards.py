"""What SERAC keeps of a first shard of facts when its training goes on with a second one.

``python tests/benchmarks/serac_shards.py MODEL --out FOLDER [--steps 1000]
[--scope-steps 1200] [--anew] [--json]``

``atlas:training`` is cut in two by subjects. A first training learns the first half; a second one begins with
what the first left, learns the second half and replays the first (``start``). Both are judged on the same
facts, those of the first half that were kept for validation, none of whose subjects is trained on:

* edits: the counterfactual model says their targets, on their own prompt and two paraphrases, in percent;
* copies: the same for strings of random tokens;
* kl: how far neighbours move that meet an edit, over all of them;
* accepted: paraphrases that meet their own edit, with these facts in memory;
* rejected: neighbours that meet none;
* seconds: of a processor, for this training alone.

``--anew`` trains on both halves at once too, from nothing and in as many steps, to compare. Exits 1 when going
on loses more than a point of edits or of what is accepted.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import torch
import typer
from attrs import evolve

from kedit_core import EditRequest, Plugins
from kedit_core.cli.screen import BarProgress, print_json, quiet_transformers, screen
from kedit_core.tokens import encode
from kedit_core.untouched import at_rest
from kedit_memory.scope_facts import split
from kedit_serac.checkpoints import Checkpoint
from kedit_serac.config import CounterfactualTraining, ScopeTraining
from kedit_serac.judging import exam_of, finder_of, judged
from kedit_serac.plans import TrainingPlan
from kedit_serac.rows import stop_of
from kedit_serac.shards import Prepared, Source, prepared
from kedit_serac.training import Training

LOSS_BAR = 1.0  # points
HALF = 0.5


class Bench:
    """An atlas model, and its training facts in two halves."""

    def __init__(self, name: str, out: Path, plan: TrainingPlan) -> None:
        plugins = Plugins.installed()
        with quiet_transformers():
            self._model, self._tokenizer = plugins.call_all(
                "open_model", source=name, dtype=None, device=None
            )
        found = list(plugins.call_all("read_requests", source="atlas:training"))
        self._judged = list(plugins.call_all("read_requests", source="atlas:editable"))
        halves: tuple[Sequence[EditRequest], ...] = split(found, HALF, plan.seed)
        self._shards = [
            Source(name=name, requests=half)
            for name, half in zip(("first", "second"), halves, strict=True)
        ]
        self._out, self._plan = out, plan
        self._held: Prepared = prepared(self._shards[0], self._tokenizer, plan)

    def first(self) -> dict[str, float]:
        """Train on the first half and return its scores."""
        return self._trained("first", self._shards[:1])

    def second(self) -> dict[str, float]:
        """Go on with the second half and return the first's scores."""
        return self._trained("second", self._shards[1:], self._shards[:1])

    def anew(self) -> dict[str, float]:
        """Train on both halves at once and return the first's scores."""
        both = [one for shard in self._shards for one in shard.requests]
        return self._trained("anew", [Source(name="both", requests=both)])

    def _trained(
        self, name: str, shards: Sequence[Source], earlier: Sequence[Source] = ()
    ) -> dict[str, float]:
        plan = evolve(
            self._plan,
            requests=tuple(one.name for one in shards),
            out=str(self._out / name),
            start=str(self._out / "first") if earlier else None,
        )
        training = Training(
            self._model,
            self._tokenizer,
            plan,
            shards,
            earlier=earlier,
            judged=self._judged,
            progress=BarProgress(),
        )
        started = process_time()
        best = training.run(resume=(self._out / name).exists())
        seconds = process_time() - started
        return {**self._scores(best), "seconds": seconds}

    @torch.no_grad()
    def _scores(self, checkpoint: Checkpoint) -> dict[str, float]:
        facts, asked = self._held.facts[1], self._held.asked[1]
        classifier, stop = checkpoint.classifier, stop_of(self._tokenizer)
        with at_rest(self._model):
            exam = exam_of(
                self._model,
                self._tokenizer,
                facts,
                asked,
                classifier,
                checkpoint.reranker,
                most=len(asked),
                chat=False,
                tokens=checkpoint.counterfactual().sayable(self._model),
                seed=self._plan.seed,
            )
            found = judged(self._model, checkpoint.counterfactual(), exam, stop, "held")
            accepted, rejected = self._met(checkpoint)
        return {
            "edits": 100 * found["edit/acc_held"],
            "copies": 100 * found["copy/acc_held"],
            "kl": found["loss/loc_held"],
            "accepted": 100 * accepted,
            "rejected": 100 * rejected,
        }

    def _met(self, checkpoint: Checkpoint) -> tuple[float, float]:
        """Return the shares of paraphrases that meet their own edit, and of neighbours that meet none."""
        facts = self._held.facts[1].facts
        known = {one.request.prompt for one in facts}
        paraphrases = [(text, n) for n, one in enumerate(facts) for text in one.request.paraphrases]
        near = [text for one in facts for text in one.neighbours if text not in known]
        finder = finder_of(
            self._model,
            self._tokenizer,
            checkpoint.classifier,
            checkpoint.reranker,
            [one.request for one in facts],
            chat=False,
        )

        def met(texts: Sequence[str]) -> torch.Tensor:
            return finder.of([one.ids for one in encode(self._tokenizer, texts)]).edit.cpu()

        own, others = met([text for text, _ in paraphrases]), met(near)
        wanted = torch.tensor([place for _, place in paraphrases])
        return float((own == wanted).float().mean()), float((others < 0).float().mean())


def missed(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return what was lost by going on."""
    found = []
    for name in ("edits", "accepted"):
        lost = scores["first"][name] - scores["second"][name]
        if lost > LOSS_BAR:
            found.append(f"{name}: {lost:.1f} points are lost, at most {LOSS_BAR:g} may be")
    return found


def main(
    model: str,
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoints.")],
    steps: Annotated[int, typer.Option("--steps")] = 1000,
    scope_steps: Annotated[int, typer.Option("--scope-steps")] = 1200,
    anew: Annotated[bool, typer.Option("--anew")] = False,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train on two shards, one after the other, and print what is kept of the first."""
    torch.set_num_threads(1)
    plan = TrainingPlan(
        model=model,
        seed=seed,
        scope=ScopeTraining(steps=scope_steps),
        counterfactual=CounterfactualTraining(
            steps=steps, batch=64, accumulate=4, validate=max(1, steps // 4), patience=50
        ),
    )
    bench = Bench(model, out, plan)
    scores: dict[str, dict[str, float]] = {"first": bench.first(), "second": bench.second()}
    if anew:
        scores["anew"] = bench.anew()
    complaints = missed(scores)
    if as_json:
        print_json(scores)
    else:
        show(scores)
        for complaint in complaints:
            screen().print(f"missed: {complaint}")
    sys.exit(bool(complaints))


def show(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line a training."""
    names = list(next(iter(scores.values())))
    screen().print("after".ljust(8) + "".join(name.rjust(10) for name in names))
    for name, row in scores.items():
        screen().print(name.ljust(8) + "".join(f"{row[one]:10.2f}" for one in names))


if __name__ == "__main__":
    typer.run(main)
