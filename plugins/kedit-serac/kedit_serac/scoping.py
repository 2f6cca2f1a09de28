"""The scope side of a training: who reads prompts, and a classifier learned and calibrated on shards."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from attrs import evolve, field, fields, frozen

from kedit_core.layout import ModelLayout
from kedit_core.progress import Progress
from kedit_memory.encoders import Encoder, described
from kedit_memory.lexicons import Lexicon, lexicon_of
from kedit_memory.pooling import Sites, sites_of
from kedit_memory.reranker_calibration import calibrated_reranker
from kedit_memory.reranker_training import RerankingLesson, train_reranker
from kedit_memory.rerankers import Reranker
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_calibration import Calibration, calibrated
from kedit_memory.scope_examples import Examples, examples_of, joined
from kedit_memory.scope_facts import Facts
from kedit_memory.scope_training import Lesson, train_scope
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


@frozen
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
        if not start.projection.numel() and settings.words:
            start = evolve(start, lexicon=lexicon_of(_texts(parts), settings.words))
        every = {one.request.prompt for part in parts for half in part.facts for one in half.facts}
        training, validation = (
            joined([self._examples(part.facts[half], every, start.lexicon) for part in parts])
            for half in range(2)
        )
        lesson = Lesson(
            width=settings.width,
            steps=settings.steps,
            lr=settings.lr,
            dropout=settings.dropout,
            seed=self.plan.seed,
        )
        classifier, found = calibrated(
            train_scope(training, start, lesson, self.progress),
            validation,
            training,
            rejects=settings.rejects,
            rejects_same_subject=settings.rejects_same_subject,
            accepts=settings.accepts,
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
        encoder = None if how.encoder is None else described(how.encoder)
        reranker, found = calibrated_reranker(
            *beside,
            train_reranker(*beside, training, lesson, self.progress, encoder=encoder),
            validation,
            training,
            rejects=settings.rejects,
            rejects_same_subject=settings.rejects_same_subject,
            recall=how.recall,
            seed=self.plan.seed,
        )
        return evolve(scoped, reranker=reranker, calibration=found)

    def _examples(self, facts: Facts, edited: Collection[str], lexicon: Lexicon | None) -> Examples:
        settings = self.plan.scope
        return examples_of(
            self.model,
            self.tokenizer,
            facts,
            self.source,
            self.progress,
            wordings=settings.wordings,
            others=settings.others,
            garbles=settings.garbles,
            lexicon=lexicon,
            edited=edited,
            chat=self.plan.chat,
            seed=self.plan.seed,
        )


def _texts(parts: Sequence[Prepared]) -> Iterator[str]:
    """Yield the prompts that the training facts of shards come with."""
    for part in parts:
        for fact in part.facts[0].facts:
            yield from map(fact.say, fact.templates)
            yield from fact.neighbours
