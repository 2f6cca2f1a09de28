"""The facts as edit requests: ``atlas:editable``, ``atlas:training`` and ``atlas:kept``."""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from collections.abc import Iterator
from functools import cache
from random import Random

from kedit_atlas.world import KEPT, Fact, Relation, World, load_world
from kedit_core import EditRequest, Probe

NEAR_PROBES, KEPT_PROBES, KEPT_GROUP = 5, 4, 400


def requests_of(name: str) -> Iterator[EditRequest]:
    """Yield the requests of one set, in the order of the world's facts.

    Those of the kept set ask for the answer that is already true: judging them says what a model
    knows. The fixed 400 that serve as probes of the group ``kept`` carry that group in ``extra``.
    """
    world = load_world()
    for place, fact in enumerate(world.of(name)):
        yield _kept_request(fact) if name == KEPT else _edit(world, fact, place)


@cache
def kept_group() -> tuple[Fact, ...]:
    """Return the fixed, seeded kept facts that every edit is probed with in turn."""
    return tuple(Random("kept group").sample(load_world().of(KEPT), KEPT_GROUP))


def counterfactual(world: World, fact: Fact) -> str:
    """Return another object of the same relation that is true of the subject in no relation."""
    true = {other.object for other in world.by_subject[fact.subject]}
    objects = sorted({other.object for other in world.of_relation(fact.relation.name)} - true)
    return Random(f"counterfactual {fact.relation.name} {fact.subject}").choice(objects)


def _edit(world: World, fact: Fact, place: int) -> EditRequest:
    target_new = counterfactual(world, fact)
    return EditRequest(
        prompt=_edit_template(fact),
        subject=fact.subject,
        target_new=target_new,
        target_true=fact.object,
        paraphrases=fact.paraphrases,
        locality=(*_near(world, fact), *_distant(fact, place)),
        portability=tuple(_two_hops(world, fact, target_new)),
        extra=_extra(fact),
    )


def _kept_request(fact: Fact) -> EditRequest:
    extra = _extra(fact)
    if fact in kept_group():
        extra["group"] = KEPT
    return EditRequest(
        prompt=_edit_template(fact),
        subject=fact.subject,
        target_new=fact.object,
        target_true=fact.object,
        paraphrases=fact.paraphrases,
        extra=extra,
    )


def _extra(fact: Fact) -> dict[str, object]:
    return {"relation": fact.relation.name, "set": fact.set, "unseen": list(fact.unseen)}


def _edit_template(fact: Fact) -> str:
    """Return the seeded template, one of those the fact trained, that the edit is asked for in."""
    return Random(f"prompt {fact.relation.name} {fact.subject}").choice(fact.trained_templates)


def _near(world: World, fact: Fact) -> Iterator[Probe]:
    """Yield kept facts with the same answer: what an edit is most likely to drag along."""
    rng = Random(f"near {fact.relation.name} {fact.subject}")
    group = [
        other for other in world.by_object[fact.relation.name, fact.object] if other.set == KEPT
    ]
    for other in rng.sample(group, min(NEAR_PROBES, len(group))):
        yield Probe(prompt=rng.choice(other.openings), answers=(other.object,), group="near")


def _distant(fact: Fact, place: int) -> Iterator[Probe]:
    rng = Random(f"kept {fact.relation.name} {fact.subject}")
    group = kept_group()
    for i in range(KEPT_PROBES):
        other = group[(place * KEPT_PROBES + i) % len(group)]
        yield Probe(prompt=rng.choice(other.openings), answers=(other.object,), group=KEPT)


def _two_hops(world: World, fact: Fact, target_new: str) -> Iterator[Probe]:
    """Yield what follows from the edit in other relations and was not true before."""
    phrase = fact.say(fact.relation.phrase)
    for relation in world.relations.values():
        if relation.subject != fact.relation.object:
            continue
        answers = {other.subject: other.object for other in world.of_relation(relation.name)}
        if target_new in answers and answers[target_new] != answers.get(fact.object):
            prompt = _bearing(relation, fact).replace("{}", phrase)
            prompt = prompt[0].upper() + prompt[1:]
            yield Probe(prompt=prompt, answers=(answers[target_new],), group=relation.name)


def _bearing(relation: Relation, fact: Fact) -> str:
    """Return a seeded template of the relation that reads well with a noun phrase in it."""
    fitting = [text for text in relation.templates if text.startswith("{}") or " of {} " in text]
    return Random(f"two hops {fact.relation.name} {fact.subject} {relation.name}").choice(fitting)
