"""The scope side of a training: who reads prompts, and a classifier learned and calibrated on shards."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen

from kedit_core.layout import ModelLayout
from kedit_core.progress import Progress
from kedit_memory.encoders import Encoder, described
from kedit_memory.pooling import Sites, sites_of
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_examples import Examples, examples_of, joined
from kedit_memory.scope_facts import Facts
from kedit_memory.scope_training import Calibration, Lesson, calibrated, train_scope
from kedit_serac.config import ScopeTraining
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

    def learned(
        self, parts: Sequence[Prepared], start: ScopeClassifier
    ) -> tuple[ScopeClassifier, Calibration]:
        """Return the classifier of all shards so far, calibrated on their validation splits.

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
        return calibrated(
            evolve(trained, encoder=start.encoder),
            validation,
            training,
            rejects=settings.rejects,
            rejects_same_subject=settings.rejects_same_subject,
        )

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
