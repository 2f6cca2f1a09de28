"""The scope classifier's part of the training: it learns from all shards so far."""

from collections.abc import Collection, Sequence
from typing import Any

from kedit_core.progress import Progress
from kedit_memory.pooling import Sites
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_examples import Examples, examples_of, joined
from kedit_memory.scope_facts import Facts
from kedit_memory.scope_training import Lesson, calibrated, train_scope
from kedit_serac.plans import TrainingPlan
from kedit_serac.shards import Prepared


def classified(
    model: Any,
    tokenizer: Any,
    parts: Sequence[Prepared],
    plan: TrainingPlan,
    start: ScopeClassifier,
    progress: Progress,
) -> tuple[ScopeClassifier, dict[str, float]]:
    """Return the classifier of all shards so far, calibrated on their validation splits, and its scores.

    Args:
        model: the base, as it is.
        tokenizer: the model's.
        parts: the shards.
        plan: says how to train.
        start: an earlier classifier to go on from; of an empty one only the sites count.
        progress: hears how far it is.
    """
    settings, sites = plan.scope, start.sites
    every = {one.request.prompt for part in parts for half in part.facts for one in half.facts}
    about = (model, tokenizer, plan, sites, every, progress)
    training, validation = (
        joined([_examples(part.facts[half], *about) for part in parts]) for half in (0, 1)
    )
    lesson = Lesson(
        width=settings.width,
        steps=settings.steps,
        lr=settings.lr,
        dropout=settings.dropout,
        seed=plan.seed,
    )
    fresh = start.projection.numel() == 0
    trained = train_scope(training, sites, lesson, progress, start=None if fresh else start)
    classifier, found = calibrated(
        trained,
        validation,
        training,
        rejects=settings.rejects,
        rejects_same_subject=settings.rejects_same_subject,
    )
    return classifier, {
        "scope/auc_val": min(found.auc.values(), default=0.0),
        "scope/accepted_val": found.accepted,
        **{f"scope/rejected_{kind}_val": one for kind, one in found.rejected.items()},
    }


def _examples(
    facts: Facts,
    model: Any,
    tokenizer: Any,
    plan: TrainingPlan,
    sites: Sites,
    edited: Collection[str],
    progress: Progress,
) -> Examples:
    return examples_of(
        model,
        tokenizer,
        facts,
        sites,
        progress,
        wordings=plan.scope.wordings,
        others=plan.scope.others,
        edited=edited,
        chat=plan.chat,
        seed=plan.seed,
    )
