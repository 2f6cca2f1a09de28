"""The scope side of a training: who reads prompts, and a classifier learned and calibrated on shards."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from attrs import evolve, field, fields, frozen

from kedit_core.layout import ModelLayout
from kedit_core.progress import Progress
from kedit_memory.encoders import Encoder, described
from kedit_memory.pooling import Sites, sites_of
from kedit_memory.readers import reader_of
from kedit_memory.reranker_calibration import calibrated_reranker
from kedit_memory.reranker_training import RerankingLesson, train_reranker
from kedit_memory.rerankers import Reranker
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_examples import Examples, examples_of, joined
from kedit_memory.scope_facts import Facts
from kedit_memory.scope_training import Calibration, Lesson, calibrated, train_scope
from kedit_serac.config import RerankerTraining, ScopeTraining
from kedit_serac.plans import TrainingPlan
from kedit_serac.shards import Prepared


def source_of(layout: ModelLayout, settings: ScopeTraining) -> Sites | Encoder:
    """Return what reads prompts: the encoder that is asked for, or else blocks of the base.

    Args:
        layout: of the base.
        settings: may name an encoder; one of the hub that is not on this machine is downloaded.

    Raises:
        KeditError: there is no such encoder.
    """
    if settings.encoder is None:
        return sites_of(layout)
    return described(settings.encoder, settings.pooling)


def untrained(source: Sites | Encoder) -> ScopeClassifier:
    """Return a classifier that has learned nothing and holds no map yet."""
    return ScopeClassifier(
        projection=torch.empty(0, 0),
        offset=torch.empty(0),
        sites=source if isinstance(source, Sites) else Sites(means=(), lasts=()),
        threshold=1.0,
        temperature=1.0,
        encoder=None if isinstance(source, Sites) else source,
    )


@frozen(kw_only=True)
class Scoped:
    """What the scope side of a training ends with.

    Attributes:
        classifier: calibrated.
        calibration: what decides does on the validation split, the re-ranker where there is one.
        reranker: calibrated, or None.
    """

    classifier: ScopeClassifier
    calibration: Calibration
    reranker: Reranker | None = None


@frozen(kw_only=True)
class Scoping:
    """How a classifier is trained beside a base.

    Attributes:
        model: the frozen base, in ``eval`` mode.
        tokenizer: the base's.
        plan: what is asked for.
        source: what reads prompts.
        progress: hears how far it is.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    plan: TrainingPlan
    source: Sites | Encoder
    progress: Progress = field(repr=False)

    def learned(self, parts: Sequence[Prepared], start: ScopeClassifier) -> "Scoped":
        """Return the classifier of all shards so far, and the re-ranker if one is asked for, calibrated.

        Args:
            parts: all shards so far.
            start: an earlier classifier to go on from, or an untrained one.
        """
        settings = self.plan.scope
        every = {one.request.prompt for part in parts for half in part.facts for one in half.facts}
        training = joined([self._examples(part.facts[0], every) for part in parts])
        validation = joined([self._examples(part.facts[1], every) for part in parts])
        lesson = Lesson(
            width=settings.width,
            steps=settings.steps,
            lr=settings.lr,
            dropout=settings.dropout,
            seed=self.plan.seed,
        )
        fresh = start.projection.numel() == 0
        about = (training, start.sites, lesson, self.progress)
        trained = train_scope(*about, start=None if fresh else start)
        classifier, found = calibrated(
            evolve(trained, encoder=start.encoder),
            validation,
            training,
            rejects=settings.rejects,
            rejects_same_subject=settings.rejects_same_subject,
        )
        scoped = Scoped(classifier=classifier, calibration=found)
        return scoped if settings.reranker is None else self._reranked(scoped, training, validation)

    def _reranked(self, scoped: "Scoped", training: Examples, validation: Examples) -> "Scoped":
        settings, how = self.plan.scope, self.plan.scope.reranker or RerankerTraining()
        names = [one.name for one in fields(RerankingLesson) if one.name != "seed"]
        lesson = RerankingLesson(
            seed=self.plan.seed, **{name: getattr(how, name) for name in names}
        )
        beside = (self.model, self.tokenizer, scoped.classifier)
        reader = reader_of(self.model, self.tokenizer, self.source, self.model.device)
        encoder = None if how.encoder is None else described(how.encoder)
        reranker, found = calibrated_reranker(
            *beside,
            train_reranker(
                *beside, training, lesson, self.progress, reader=reader, encoder=encoder
            ),
            validation,
            training,
            rejects=settings.rejects,
            rejects_same_subject=settings.rejects_same_subject,
            recall=how.recall,
            seed=self.plan.seed,
        )
        return evolve(scoped, reranker=reranker, calibration=found)

    def _examples(self, facts: Facts, edited: Collection[str]) -> Examples:
        settings = self.plan.scope
        return examples_of(
            self.model,
            self.tokenizer,
            facts,
            self.source,
            self.progress,
            wordings=settings.wordings,
            others=settings.others,
            edited=edited,
            chat=self.plan.chat,
            seed=self.plan.seed,
        )
