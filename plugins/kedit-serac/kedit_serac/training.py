"""Training of SERAC: the scope classifier, then the counterfactual model, shard by shard.

Everything is drawn by seed and step, and the last checkpoint holds the step, the weights and the optimiser, so
training that was interrupted ends at the bits that it would have ended at.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from attrs import asdict, evolve
from torch import Tensor

from kedit_core import EditRequest, Weights
from kedit_core.config import as_mapping
from kedit_core.errors import KeditError
from kedit_core.progress import Progress
from kedit_core.untouched import at_rest
from kedit_memory.decoders import shape_for
from kedit_memory.disjoint import check_disjoint, normal
from kedit_memory.scope_facts import Facts
from kedit_memory.scope_files import BEST, made_for
from kedit_memory.scope_training import untrained
from kedit_serac.bridged import Bridged, Language
from kedit_serac.checkpoints import LAST, Checkpoint, read, write
from kedit_serac.counterfactual import Counterfactual, new_counterfactual
from kedit_serac.judging import Exam, exam_of, judged
from kedit_serac.lessons import Lessons, Shard
from kedit_serac.plans import TrainingPlan
from kedit_serac.rows import stop_of
from kedit_serac.scoping import Scoping, source_of
from kedit_serac.shards import Prepared, Source, prepared
from kedit_serac.teams import ALONE, Team
from kedit_serac.where import Where

LOG = "log.jsonl"

_EXAM = 128
_METRIC = "loss/edit_val"

Say = Callable[[Mapping[str, Any]], None]
"""Hears the scores of each validation."""


class Training:
    """One training, from wherever it is to its end."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        plan: TrainingPlan,
        shards: Sequence[Source],
        *,
        earlier: Sequence[Source] = (),
        judged: Sequence[EditRequest] = (),
        language: Bridged | None = None,
        team: Team = ALONE,
        progress: Progress | None = None,
        say: Say | None = None,
    ) -> None:
        """Prepare a training; nothing is written yet.

        Args:
            model: the base, which stays as it is.
            tokenizer: the model's.
            plan: what is asked for; sources in it were read already.
            shards: to learn, in order.
            earlier: shards that ``plan.start`` learned, to replay.
            judged: requests that will be edited and judged later.
            language: counterfactual model to begin with, where it has a vocabulary of its own; None takes
                that of ``plan.start`` or makes one that shares the base's.
            team: processes that train together; the first one trains the scope, judges, and alone writes.
                All must see the plan's folders.
            progress: hears how far it is.
            say: hears the scores of each validation.

        Raises:
            RequestError: a fact to train on is to be judged too, or facts are too few.
            KeditError: prompts are to be rendered through a chat template that ``language`` does not have.
        """
        for one in (*earlier, *shards):
            check_disjoint(one.requests, judged)
        self.folder = Path(plan.out)
        self._model, self._tokenizer, self._plan = model, tokenizer, plan
        self._progress, self._say = progress or Progress(), say or (lambda _: None)
        self._team, self._weights = team, Weights(model)
        source = source_of(self._weights.layout, plan.scope)
        self._scoping = Scoping(model, tokenizer, plan, source, self._progress)
        self._language = _language_in(plan, language)
        reader = tokenizer if self._language is None else self._language.tokenizer
        edited = {normal(text) for one in judged for text in (one.prompt, *one.paraphrases)}
        self._earlier = [prepared(one, reader, plan, edited) for one in earlier]
        self._shards = [prepared(one, reader, plan, edited) for one in shards]
        self._stop = stop_of(reader)
        self._made_for = made_for(self._weights, tokenizer)
        self._began = perf_counter()

    def run(self, *, resume: bool = False) -> Checkpoint:
        """Train to the end and return the best checkpoint.

        Args:
            resume: go on from the last checkpoint in the folder, if there is one.

        Raises:
            KeditError: the folder holds another training, or a checkpoint is damaged.
        """
        last = self._last(resume)
        with at_rest(self._model), torch.random.fork_rng():
            where = Where() if last is None else Where(**last.about["where"])
            checkpoint = self._start(last)
            while where.shard < len(self._shards):
                checkpoint = self._learn(checkpoint, where, resumed=last is not None)
                last, where = None, Where(shard=where.shard + 1)
        return read(self.folder / BEST)

    def _last(self, resume: bool) -> Checkpoint | None:
        path = self.folder / LAST
        if not path.exists():
            return None
        if not resume:
            raise KeditError(
                f"{self.folder} holds a training already; go on with --resume, or choose another folder"
            )
        last = read(path)
        if last.about["plan"] != self._named():
            raise KeditError(f"{path} was made by another plan; choose another folder")
        return last

    def _named(self) -> dict[str, Any]:
        """Return what makes two trainings the same one, JSON values."""
        own = {**as_mapping(self._plan), "out": "", "device": None}
        found: dict[str, Any] = json.loads(json.dumps(own))
        return found

    def _start(self, last: Checkpoint | None) -> Checkpoint:
        """Return what training begins with: what was there last, an earlier training, or nothing."""
        if last is not None:
            return last
        settings = self._plan.counterfactual
        if self._plan.start is not None:
            found = read(Path(self._plan.start))
            if found.classifier.source != self._scoping.source:
                raise KeditError(
                    f"{self._plan.start} was trained on other states of prompts; say the same scope.encoder "
                    "and scope.pooling, or begin without start"
                )
            if isinstance(found.shape, Language) != (self._language is not None):
                raise KeditError(f"{self._plan.start} holds another kind of counterfactual model")
            return evolve(found, state={}, about={}, made_for=self._made_for)
        model: Counterfactual | Bridged | None = self._language
        if model is None:
            shape = shape_for(self._model, settings.blocks, settings.heads)
            model = new_counterfactual(shape, self._plan.seed)
        return Checkpoint(
            classifier=untrained(self._scoping.source),
            shape=model.shape,
            weights=_copied(model.state_dict()),
            made_for=self._made_for,
            chat=self._plan.chat,
        )

    def _learn(self, start: Checkpoint, where: Where, *, resumed: bool) -> Checkpoint:
        """Learn one shard and return the best checkpoint of it."""
        plan, own = self._plan, self._shards[where.shard]
        known = [*self._earlier, *self._shards[: where.shard]]
        scope: Mapping[str, float] = start.about.get("scope", {})
        checkpoint = start
        if self._team.first and not resumed:
            scoped = self._scoping.learned([*known, own], start.classifier)
            found = scoped.calibration
            scope = {
                "scope/auc_val": min(found.auc.values(), default=0.0),
                "scope/accepted_val": found.accepted,
                **{f"scope/rejected_{kind}_val": one for kind, one in found.rejected.items()},
            }
            checkpoint = evolve(start, classifier=scoped.classifier, reranker=scoped.reranker)
        model = checkpoint.counterfactual()
        about_steps = (plan.counterfactual, self._stop, plan.seed, self._team)
        lessons = Lessons(self._model, model, *about_steps)
        lessons.go_on(dict(start.state) if resumed else {})
        first = self._team.first
        exams = self._exams([*known, own], checkpoint, lessons.tokens) if first else {}
        shard = Shard(
            own=own.asked[0],
            earlier=[one for part in known for one in part.asked[0]],
            name=f"{where.shard} {own.name}",
        )
        about = {"plan": self._named(), "shards": self._names(where), "scope": dict(scope)}
        checkpoint = evolve(checkpoint, about=about)
        for now, scores in self._steps(lessons, shard, exams, where):
            if not first:
                continue
            self._log({"step": now.step, "shard": own.name, **scores, **scope}, now)
            checkpoint = evolve(checkpoint, weights=_copied(model.state_dict()))
            if now.stale == 0:
                write(
                    evolve(checkpoint, about={**about, **scores, "step": now.step}),
                    self.folder / BEST,
                )
            self._keep(checkpoint, lessons, now)
        self._team.told(0.0)  # the first one has written
        return read(self.folder / BEST)

    def _steps(
        self, lessons: Lessons, shard: Shard, exams: Mapping[str, Exam], where: Where
    ) -> Iterator[tuple[Where, dict[str, float]]]:
        """Make the steps that are left, and yield after each validation."""
        settings, now = self._plan.counterfactual, where
        named = f"training the counterfactual model on {shard.name}"
        with self._progress.task(named, settings.steps, "steps") as done:
            done(now.step)
            while not now.ended:
                lessons.step(shard, now.step)
                done(1)
                now = evolve(now, step=now.step + 1)
                last = now.step >= settings.steps
                if now.step % settings.validate and not last:
                    continue
                scores: dict[str, float] = {"lr": settings.lr * lessons.rate(now.step - 1)}
                for suffix, exam in exams.items():
                    scores |= judged(self._model, lessons.model, exam, self._stop, suffix)
                found = self._team.told(scores.get(_METRIC, 0.0))
                better = found < now.best
                now = evolve(
                    now,
                    best=min(now.best, found),
                    stale=0 if better else now.stale + 1,
                )
                now = evolve(now, ended=last or now.stale >= settings.patience)
                yield now, scores

    def _exams(
        self, parts: Sequence[Prepared], checkpoint: Checkpoint, tokens: Sequence[int]
    ) -> dict[str, Exam]:
        exams, language = {}, self._language
        for place, suffix in enumerate(("train", "val")):
            facts = Facts(facts=tuple(one for part in parts for one in part.facts[place].facts))
            asked = [one for part in parts for one in part.asked[place]]
            exams[suffix] = exam_of(
                self._model,
                self._tokenizer,
                facts,
                asked,
                checkpoint.classifier,
                checkpoint.reranker,
                most=_EXAM,
                chat=self._plan.chat,
                seed=self._plan.seed,
                tokens=tokens,
                reader=None if language is None else language.tokenizer,
            )
        return exams

    def _names(self, where: Where) -> list[str]:
        return [one.name for one in (*self._earlier, *self._shards[: where.shard + 1])]

    def _keep(self, checkpoint: Checkpoint, lessons: Lessons, now: Where) -> None:
        """Write the last checkpoint, from which training goes on."""
        about = {**checkpoint.about, "where": asdict(now)}
        write(evolve(checkpoint, about=about, state=lessons.state()), self.folder / LAST)

    def _log(self, scores: Mapping[str, Any], now: Where) -> None:
        line = {**scores, "best": now.stale == 0, "seconds": round(perf_counter() - self._began, 1)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._say(line)


def _language_in(plan: TrainingPlan, given: Bridged | None) -> Bridged | None:
    """Return the counterfactual model that training begins with, if its vocabulary is its own."""
    found: Counterfactual | Bridged | None = given
    if found is None and plan.start is not None:
        found = read(Path(plan.start)).counterfactual()
    if not isinstance(found, Bridged):
        return None
    if plan.chat:
        raise KeditError("a counterfactual model with its own vocabulary reads no chat template")
    return found


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in weights.items()}
