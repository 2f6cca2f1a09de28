"""Shards of the training set: read, split into what is learned and what it is validated on, tokenised."""

from collections.abc import Collection, Sequence
from typing import Any

from attrs import field, frozen

from kedit_core import EditRequest
from kedit_memory.scope_facts import Facts, facts_in, facts_of, split
from kedit_serac.plans import TrainingPlan
from kedit_serac.rows import Asked, asked_of


@frozen(kw_only=True)
class Source:
    """One shard of requests, and what it is called."""

    name: str
    requests: Sequence[EditRequest] = field(repr=False)


@frozen(kw_only=True)
class Prepared:
    """One shard, split and tokenised.

    Attributes:
        name: of the shard.
        facts: to train on, and to validate on.
        asked: the same, tokenised.
    """

    name: str
    facts: tuple[Facts, Facts] = field(repr=False)
    asked: tuple[Sequence[Asked], Sequence[Asked]] = field(repr=False)


def prepared(
    source: Source, tokenizer: Any, plan: TrainingPlan, judged: Collection[str] = ()
) -> Prepared:
    """Return a shard, split by subjects and tokenised.

    Args:
        source: what was read.
        tokenizer: of the counterfactual model.
        plan: says how much is for validation, and how prompts are rendered.
        judged: prompts that will be edited, normalised; none of them is a neighbour to train on.

    Raises:
        RequestError: its facts are too few, or none has another wording.
    """
    learned, held = split(source.requests, plan.validation, plan.seed)
    facts = facts_of(learned), Facts(facts=facts_in(held))
    about: dict[str, Any] = {
        "wordings": plan.scope.wordings,
        "garbles": plan.scope.garbles,
        "chat": plan.chat,
        "seed": plan.seed,
    }
    asked = [asked_of(tokenizer, one, judged=judged, **about) for one in facts]
    return Prepared(name=source.name, facts=facts, asked=(asked[0], asked[1]))
