"""How well ROME writes single facts, each judged alone and taken out again: the project's first bar.

``python tests/benchmarks/rome_restored.py --model atlas:gpt2 [--edits 200] [--seed 0] [--threads 1]
[--json]`` edits a seeded sample of ``atlas:editable`` with ROME's default settings, one fact at a
time, judges it by exact match on its own prompt, its paraphrases and those near neighbours that the
unedited model gets right, and undoes it. Then all edits are judged once more, together in shared
forwards, and the answers compared. Exits 1 when a bar is missed or a score differs.
"""

import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import typer
from attrs import evolve, frozen
from rich.table import Table

from kedit_core import Delta, EditBatch, Editor, EditRequest, Plugins, Score, TensorCache, encode
from kedit_core.cli.screen import BarProgress, print_json, quiet_transformers, screen
from kedit_core.questions import Question, questions_of
from kedit_core.scoring import Answered, Ids, score_answers
from kedit_core.tokens import encode_target
from kedit_rome.together import Asked, score_together

SOURCE = "atlas:editable"
RELIABILITY, GENERALIZATION = "reliability.exact", "generalization.exact"
NEAR = "locality.exact:near"
BARS = {RELIABILITY: 0.96, GENERALIZATION: 0.90, NEAR: 0.975}
METRICS: Mapping[str, Mapping[str, Any]] = {
    RELIABILITY: {},
    GENERALIZATION: {},
    "locality.exact": {"known": True},
}

Pair = tuple[Ids, Ids]
Values = dict[str, dict[str, float]]  # by metric, by request


@frozen(kw_only=True)
class Edited:
    """One edit, judged alone: by ``Editor.evaluate``, and question by question; with the seconds taken."""

    delta: Delta
    scores: Sequence[Score]
    answers: Sequence[Answered]
    editing: float
    judging: float


@frozen(kw_only=True)
class Interview:
    """What one request is judged by: questions with the metric they count for, and a pair for each alias."""

    questions: Sequence[tuple[str, Question]]
    pairs: Sequence[Sequence[Pair]]

    @property
    def asked(self) -> list[Pair]:
        """Return all prompts and answers in a row."""
        return [pair for own in self.pairs for pair in own]


def sampled(plugins: Plugins, edits: int, seed: int) -> list[EditRequest]:
    """Return a seeded sample, each request with its near neighbours as its only locality probes."""
    found = list(plugins.call_all("read_requests", source=SOURCE))
    chosen = random.Random(seed).sample(found, min(edits, len(found)))
    return [
        evolve(request, locality=tuple(p for p in request.locality if p.group == "near"))
        for request in chosen
    ]


def interview(editor: Editor, request: EditRequest) -> Interview:
    """Return what is asked about a request; of the neighbours those that the unedited model knows."""

    def pairs_of(question: Question) -> list[Pair]:
        (read,) = encode(editor.tokenizer, [question.prompt])
        return [
            (read.ids, encode_target(editor.tokenizer, read, question.joined(answer)))
            for answer in question.answers
        ]

    batch = EditBatch(requests=(request,))
    near = list(questions_of(batch, "locality"))
    known = [
        any(one.exact for one in score_answers(editor.model, pairs_of(question)))
        for question in near
    ]
    questions = [
        *((RELIABILITY, question) for question in questions_of(batch, "reliability")),
        *((GENERALIZATION, question) for question in questions_of(batch, "generalization")),
        *((NEAR, question) for question in compress(near, known)),
    ]
    pairs = [pairs_of(question) for _, question in questions]
    return Interview(questions=questions, pairs=pairs)


def one_by_one(
    editor: Editor, requests: Sequence[EditRequest], interviews: Sequence[Interview]
) -> list[Edited]:
    """Edit, judge and undo every request in turn."""
    done: list[Edited] = []
    with BarProgress().task("editing and judging", len(requests), "edits") as advance:
        for request, about in zip(requests, interviews, strict=True):
            started = perf_counter()
            delta = editor.edit(request)
            edited = perf_counter()
            report = editor.evaluate(request, METRICS)
            judged = perf_counter()
            answers = score_answers(editor.model, about.asked)
            editor.undo()
            done.append(
                Edited(
                    delta=delta,
                    scores=report.scores,
                    answers=answers,
                    editing=edited - started,
                    judging=judged - edited,
                )
            )
            advance(1)
    return done


def by_request(scores: Iterable[Score]) -> Values:
    """Return the values of the metrics that have a bar."""
    found: Values = {metric: {} for metric in BARS}
    for score in scores:
        if score.metric in found and score.request is not None:
            found[score.metric][score.request] = score.value
    return found


def scores_of(about: Interview, answers: Sequence[Answered]) -> list[Score]:
    """Return what the answers of one interview come to."""
    left = iter(answers)
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for (metric, question), pairs in zip(about.questions, about.pairs, strict=True):
        hits = [next(left).exact for _ in pairs]  # all of them are taken, whichever is right
        right[metric, question.request].append(any(hits))
    return [
        Score(metric=metric, request=request, value=sum(hits) / len(hits))
        for (metric, request), hits in right.items()
    ]


def summary(values: Values, before: Values) -> dict[str, dict[str, Any]]:
    """Return per metric its mean, how many requests have it, its bar, and whether it is met."""
    return {
        metric: {
            "before": _mean(before[metric]),
            "value": _mean(values[metric]),
            "requests": len(values[metric]),
            "bar": bar,
            "met": bool(values[metric]) and _mean(values[metric]) >= bar,
        }
        for metric, bar in BARS.items()
    }


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values) if values else float("nan")


def together(
    editor: Editor, done: Sequence[Edited], interviews: Sequence[Interview]
) -> tuple[list[Answered], float]:
    """Return the answers of all edits, each as if alone, from shared forwards, and the seconds taken."""
    started = perf_counter()
    questions = [
        Asked(delta=place, prompt=prompt, answer=answer)
        for place, about in enumerate(interviews)
        for prompt, answer in about.asked
    ]
    answers = score_together(editor.model, [one.delta for one in done], questions)
    return answers, perf_counter() - started


def compared(
    done: Sequence[Edited], interviews: Sequence[Interview], answers: Sequence[Answered]
) -> dict[str, Any]:
    """Return how many answers the two ways of judging have in common, and whether their scores agree."""
    alone = [answer for one in done for answer in one.answers]
    left = iter(answers)
    mine = [scores_of(about, [next(left) for _ in about.asked]) for about in interviews]
    values = by_request(score for own in mine for score in own)
    return {
        "answers": len(answers),
        "same": sum(a.top.equal(b.top) for a, b in zip(alone, answers, strict=True)),
        "same scores": values == by_request(score for one in done for score in one.scores),
    }


def each_request(
    requests: Sequence[EditRequest], done: Sequence[Edited], values: Values
) -> list[dict[str, Any]]:
    """Return what became of every request, for whoever wants to know which ones failed."""
    return [
        {
            "id": request.id,
            "prompt": request.prompt,
            "target_true": request.target_true,
            "target_new": request.target_new,
            "relation": request.extra.get("relation"),
            **{metric: values[metric].get(request.id) for metric in BARS},
            "notes": one.delta.provenance.notes,
        }
        for request, one in zip(requests, done, strict=True)
    ]


def measured(model: str, edits: int, seed: int) -> dict[str, Any]:
    """Edit, judge both ways, and return all figures."""
    plugins = Plugins.installed()
    requests = sampled(plugins, edits, seed)
    with TemporaryDirectory() as folder, quiet_transformers():
        cache = TensorCache(Path(folder))
        editor = Editor.from_pretrained(
            model, "rome", dtype=torch.float32, plugins=plugins, cache=cache
        )
        # Before the first edit, and so that no judgement is charged for asking the unedited model.
        before = by_request(editor.evaluate(requests, METRICS).scores)
        interviews = [interview(editor, request) for request in requests]
        done = one_by_one(editor, requests, interviews)
        answers, seconds = together(editor, done, interviews)
    values = by_request(score for one in done for score in one.scores)
    with_near = sum(bool(request.locality) for request in requests)
    return {
        "model": model,
        "edits": len(requests),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "metrics": summary(values, before),
        "no near neighbour": len(requests) - with_near,
        "no near neighbour known": with_near - len(values[NEAR]),
        "seconds": {
            "first edit": done[0].editing,
            "edit": median(one.editing for one in done[1:] or done),
            "judge alone": sum(one.judging for one in done) / len(done),
            "judge together": seconds / len(done),
        },
        "together": compared(done, interviews, answers),
        "requests": each_request(requests, done, values),
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    console = screen()
    title = f"{found['edits']} edits of {found['model']} by ROME, each alone, seed {found['seed']}"
    table = Table("METRIC", "BEFORE", "AFTER", "BAR", "", "REQUESTS", box=None, title=title)
    for metric, row in found["metrics"].items():
        mark = "[green]met[/]" if row["met"] else "[red]missed[/]"
        shares = (f"{100 * row[key]:.2f} %" for key in ("before", "value", "bar"))
        table.add_row(metric, *shares, mark, str(row["requests"]))
    console.print(table)
    seconds, both = found["seconds"], found["together"]
    console.print(
        f"\n{found['no near neighbour']} requests have no near neighbour; of "
        f"{found['no near neighbour known']} more the model knows none."
    )
    times = Table("SECONDS", "AN EDIT", box=None)
    times.add_row("editing (median; the first took its statistics too)", f"{seconds['edit']:.3f}")
    times.add_row("the first edit", f"{seconds['first edit']:.3f}")
    times.add_row("judging alone", f"{seconds['judge alone']:.4f}")
    times.add_row("judging together", f"{seconds['judge together']:.4f}")
    console.print(times)
    ratio = seconds["judge alone"] / seconds["judge together"]
    console.print(
        f"\nJudged together, {both['same']} of {both['answers']} answers are the same, "
        f"the scores {'too' if both['same scores'] else '[red]are not[/]'}; "
        f"{ratio:.1f} times as fast ({found['threads']} threads)."
    )


def main(
    model: str = "atlas:gpt2", edits: int = 200, seed: int = 0, threads: int = 0, json: bool = False
) -> None:
    """Print how ROME fares, and exit 1 when a bar is missed; ``--threads 0`` leaves it to torch."""
    if threads:
        torch.set_num_threads(threads)
    found = measured(model, edits, seed)
    if json:
        print_json(found)
    else:
        show(found)
    met = all(row["met"] for row in found["metrics"].values())
    sys.exit(0 if met and found["together"]["same scores"] else 1)


if __name__ == "__main__":
    typer.run(main)
