"""Runs that were never made: seeded streams of scores, as a journal would tell them."""

from math import exp
from pathlib import Path
from random import Random

from kedit_core import EditRequest
from kedit_core.conflicts import Decision
from kedit_core.judgements import Judgement
from kedit_core.limits import Breach
from kedit_core.reports import EvalReport, Score
from kedit_core.run_records import CellRecord, EditRecord, Example, RunRecord
from kedit_core.schedule import Schedule

RELATIONS = ("capital of", "mother tongue", "plays the", "employer", "born in", "written in")


def requests(count, relations=RELATIONS):
    return tuple(
        EditRequest(
            prompt=f"The {relations[i % len(relations)]} question {i} of {{}} is",
            subject=f"Subject {i}",
            target_new=f"answer {i}",
            extra={"relation": relations[i % len(relations)]},
        )
        for i in range(count)
    )


class Stream:
    """What one way of editing does to a model: how fast edits fade, and what it costs the rest.

    Attributes:
        fade: share of its edits that are gone after the whole stream.
        harm: share of the neighbours that are lost after the whole stream.
        growth: of perplexity, a factor.
    """

    def __init__(self, asked, fade, harm, growth, seed):
        self.asked, self.fade, self.harm, self.growth = asked, fade, harm, growth
        self._lots = [Random(f"{seed} {i}") for i in range(len(asked))]
        self._fates = [[lot.random() for _ in range(5)] for lot in self._lots]

    def scores(self, first, at):
        total = len(self.asked)
        for i in range(first, at):
            age, fates = (at - i) / total, self._fates[i]
            held = fates[0] > self.fade * (0.1 + 0.9 * age * at / total)
            yield "reliability.exact", i, float(held)
            yield "generalization.exact", i, float(held and fates[1] > 0.15 + 0.3 * self.fade)
            spared = at / total * self.harm
            yield "locality.exact:near", i, float(fates[2] > 0.08 + spared)
            yield "locality.exact:kept", i, float(fates[3] > 0.03 + 0.6 * spared)
            yield "locality.exact", i, float(fates[2] > 0.06 + 0.8 * spared)

    def whole(self, at):
        done = at / len(self.asked)
        yield "perplexity", 12.4 * exp(done * self.growth)
        yield "drift", 0.02 + 0.5 * done * (self.fade + 0.2)

    def report(self, method, first, at, change=None):
        scores = [
            Score(metric=metric, value=value, request=self.asked[i].id)
            for metric, i, value in self.scores(first, at)
        ]
        scores += [Score(metric=metric, value=value) for metric, value in self.whole(at)]
        if change is not None:
            scores = [change(at, one) for one in scores]
        return EvalReport(method=method, step=at, scores=tuple(scores), seconds=1.5)


def before(asked):
    values = {"reliability.exact": 0.02, "generalization.exact": 0.02, "locality.exact": 0.94}
    values |= {"locality.exact:near": 0.92, "locality.exact:kept": 0.97}
    scores = [
        Score(metric=metric, value=float((i % 50) / 50 < value), request=one.id)
        for metric, value in values.items()
        for i, one in enumerate(asked)
    ]
    scores.append(Score(metric="perplexity", value=12.4))
    return EvalReport(method="unedited", step=0, scores=tuple(scores))


def cell(
    label="memit",
    edits=200,
    schedule=None,
    *,
    seed=None,
    reached=None,
    fade=0.2,
    harm=0.15,
    growth=0.3,
    baseline=True,
    change=None,
    asked=None,
    **others,
):
    """Return a cell that was edited up to ``reached`` and judged as its schedule says."""
    schedule = schedule or Schedule(interval=max(1, edits // 20), evaluate_on="all")
    asked = requests(edits) if asked is None else asked
    order = list(asked)
    if seed is not None:
        Random(seed).shuffle(order)
    reached = edits if reached is None else reached
    stream = Stream(order, fade, harm, growth, f"{label} {seed}")
    judgements = tuple(
        Judgement(
            at=point.at,
            interval=point.interval,
            judged=[one.id for one in order[point.first : point.at]],
            report=stream.report(label, point.first, point.at, change),
        )
        for point in schedule.points(edits)
        if point.at <= reached
    )
    values = {
        "name": label if seed is None else f"{label}-{seed}",
        "model": "atlas:gpt2",
        "method": label,
        "label": label,
        "config": {},
        "schedule": schedule,
        "seed": seed,
        "requests": edits,
        "before": before(asked) if baseline else None,
        "edits": _edits(label, schedule, order, reached),
        "judgements": judgements,
        "examples": _examples(order, label),
        "finished": reached == edits,
    }
    return CellRecord(**(values | others))


def run(*cells, **others):
    values = {
        "folder": Path("/runs/made"),
        "plan": {
            "model": "atlas:gpt2",
            "requests": "atlas:editable",
            "limit": 200,
            "methods": ["memit", "rome"],
            "schedule": {"batch_size": 1, "interval": 10, "evaluate_on": "all"},
            "metrics": {"perplexity": {"text": "heldout.txt"}},
        },
        "versions": {"kedit-core": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"processor": "AMD EPYC", "cores": "2", "device": "cpu", "system": "Linux"},
        "started": "2026-11-29T05:23:00+00:00",
        "cells": cells,
    }
    return RunRecord(**(values | others))


def two_methods(edits=200, schedule=None, **others):
    return run(
        cell("memit", edits, schedule, fade=0.08, harm=0.12, growth=0.1, **others),
        cell("rome", edits, schedule, fade=0.6, harm=0.5, growth=1.0, **others),
    )


def stopped():
    """Return a run whose one stream was stopped by a limit, rolled back, and another that goes on."""
    broken = Breach(limit="perplexity", allowed=1.5, found=2.74, at=140, since=130)
    first = cell("rome", 200, reached=140, fade=0.6, harm=0.5, growth=1.4)
    *good, last = first.judgements
    judged = Judgement(
        at=140, interval=10, judged=last.judged, report=last.report, breaches=(broken,)
    )
    first = cell(
        "rome",
        200,
        reached=140,
        judgements=(*good, judged),
        stopped="perplexity grew by 2.74, more than 1.5; rolled back to edit 130",
    )
    why = "asked again for the same subject and prompt with another target; the last one holds"
    decided = Decision(kind="contradiction", request="a", other="b", kept="a", why=why)
    return run(first, cell("memit", 200, reached=120, fade=0.08, decisions=(decided,)))


def _edits(label, schedule, order, reached):
    return tuple(
        EditRecord(
            place=place,
            delta=f"{place:016x}",
            parent=None,
            method=label,
            version=f"kedit-{label} 0.1.0",
            requests=tuple(order[batch.start : batch.stop]),
            before={},
            after={},
            path="",
            checksum="",
            seconds=0.6 * len(batch),
            peak_memory=640_000_000,
            in_force=schedule.keep,
        )
        for place, batch in enumerate(schedule.batches(len(order)))
        if batch.stop <= reached
    )


def _examples(order, label):
    for one in order[:4]:
        said = one.target_new if label != "rome" or one.id < "8" else "something else entirely"
        yield Example(
            request=one.id, kind="edit", prompt=one.prompt, wanted=one.target_new,
            before="the old answer", after=f"{said}, and more",
        )  # fmt: skip
        yield Example(
            request=one.id, kind="neighbour", prompt=f"{one.prompt} not", wanted="Rome",
            before="Rome", after="Rome",
        )  # fmt: skip


SIX = ("rome", "memit", "pmet", "wise", "serac", "memit, the original’s steps")


def six_methods(schedule=None):
    return run(
        *(
            cell(name, 100, schedule, fade=0.12 * i, harm=0.1 * i, growth=0.9 * i)
            for i, name in enumerate(SIX)
        )
    )


def five_orders():
    kinds = (("memit", 0.25, 0.15, 0.3), ("rome", 0.7, 0.5, 1.0))
    return run(
        *(
            cell(label, 100, seed=seed, fade=fade, harm=harm, growth=growth)
            for label, fade, harm, growth in kinds
            for seed in range(5)
        )
    )


def not_finite():
    """Return a run whose perplexity is infinite at first, then not even a number."""

    def change(at, one):
        if one.metric == "perplexity" and at > 120:
            return Score(metric=one.metric, value=float("inf" if at < 160 else "nan"))
        return one

    return run(cell("rome", 200, growth=1.4, change=change), cell("memit", 200))


def grid():
    """Return a run over methods, models, schedules and orders."""
    schedules = [
        Schedule(interval=T, evaluate_on=on) for T, on in ((10, "all"), (50, "all"), (10, "window"))
    ]
    return run(
        *(
            cell(name, 100, schedule, seed=seed, model=model, fade=0.1 * i)
            for i, name in enumerate(SIX[:4])
            for model in ("atlas:gpt2", "atlas:llama")
            for schedule in schedules
            for seed in (0, 1)
        )
    )


HOSTILE = (
    '<script>document.title = "taken"</script><img src=x onerror="document.title=\'taken\'">&amp;'
)


def hostile():
    """Return a run whose every text is markup, or runs from right to left, or has no blanks."""
    texts = (
        (HOSTILE, "<b>bold</b>", HOSTILE),
        ("عاصمة فرنسا هي", "باريس", "عاصمة"),
        ("ראש הממשלה הוא", "מישהו", "שר"),
        ("日本の首都は", "大阪市", "首都"),
        ("W" * 400, "M" * 400, "relation" * 40),
        ('The "quoted" one', "it's", "a'b\"c&lt;"),
    )
    asked = tuple(
        EditRequest(prompt=prompt, target_new=target, extra={"relation": relation})
        for prompt, target, relation in texts
    )
    schedule = Schedule(evaluate_on="all")
    labels = (HOSTILE, "النموذج", "x" * 300)
    why = HOSTILE
    decided = Decision(kind="duplicate", request="a", other="b", kept="a", why=why)
    return run(
        *(
            cell(
                label,
                6,
                schedule,
                asked=asked,
                model=HOSTILE,
                decisions=(decided,),
                stopped=HOSTILE,
            )
            for label in labels
        ),
        folder=Path(f"/runs/{HOSTILE.replace('/', '')}"),
        plan={HOSTILE: HOSTILE, "日本": [1, 2.5, {"x": "y" * 5000}], "nothing": None},
        versions={HOSTILE: HOSTILE},
        machine={HOSTILE: HOSTILE},
        started=HOSTILE,
    )


SAMPLES = {
    "one edit": lambda: run(cell("rome", 1, Schedule())),
    "two methods": two_methods,
    "ten thousand edits": lambda: two_methods(
        10_000, Schedule(batch_size=100, interval=2_500, evaluate_on="all")
    ),
    "ten thousand at once": lambda: run(cell("memit", 10_000, Schedule(batch_size="all"))),
    "six methods": six_methods,
    "six methods at once": lambda: six_methods(Schedule(batch_size="all")),
    "no baseline": lambda: two_methods(100, baseline=False),
    "not finite": not_finite,
    "one not judged": lambda: run(cell("rome", 100, reached=0), cell("memit", 100)),
    "nothing judged": lambda: run(cell("rome", 100, reached=0, baseline=False)),
    "no cell": run,
    "stopped": stopped,
    "four T": lambda: two_methods(500, Schedule(interval=(1, 10, 100, 500), evaluate_on="window")),
    "five orders": five_orders,
    "taken out again": lambda: run(cell("rome", 100, Schedule(keep=False))),
    "stages": lambda: run(
        cell("memit", 1_000, Schedule(stages=(1, 10, 100, "all"), evaluate_on="all"))
    ),
    "grid": grid,
    "hostile": hostile,
}
