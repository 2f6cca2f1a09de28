"""Facts to train a memory's companions on: wordings that ask the same, and such that only look alike.

They are read from edit requests, whose paraphrases and probes are for training here; so these requests must
not be among those that are judged later (``disjoint``). Facts of one relation lend each other their wordings:
"{} plays the" asked of one subject is a wording for every other.
"""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from random import Random

from attrs import field, frozen

from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest

_RELATION = ("relation", "relation_id")
SUBJECT = "{}"
"""Where the subject stands in a template."""


@frozen(kw_only=True)
class Fact:
    """What one request says for training.

    Attributes:
        request: that it was read from.
        relation: its name, or else the prompt without its subject.
        named: whether it has a name.
        subject: whom or what it is about; the whole prompt where none is given.
        templates: its own wordings, ``{}`` for the subject; the prompt's is the first.
        neighbours: prompts of its probes, which an edit must leave alone.
    """

    request: EditRequest = field(repr=False)
    relation: str
    named: bool
    subject: str
    templates: tuple[str, ...]
    neighbours: tuple[str, ...] = field(repr=False)

    def say(self, template: str) -> str:
        """Return a template with the subject in its place."""
        return template.replace(SUBJECT, self.subject)


@frozen(kw_only=True, slots=False)
class Facts:
    """Facts, and what they know of each other."""

    facts: tuple[Fact, ...]

    @cached_property
    def templates(self) -> Mapping[str, tuple[str, ...]]:
        """Return the wordings of each relation."""
        found: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for fact in self.facts:
            found[fact.relation].update(dict.fromkeys(fact.templates))
        return {name: tuple(templates) for name, templates in found.items()}

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Return the words of all templates, each as often as it is there."""
        every = [one for templates in self.templates.values() for one in templates]
        return tuple(word for one in every for word in one.split() if SUBJECT not in word)

    @cached_property
    def _of_subject(self) -> Mapping[str, frozenset[str]]:
        """Return the relations that each subject has a fact of."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for fact in self.facts:
            found[fact.subject].add(fact.relation)
        return {subject: frozenset(own) for subject, own in found.items()}

    @cached_property
    def _sharing(self) -> Mapping[str, frozenset[str]]:
        """Return, per relation, those that some of its subjects have, itself among them."""
        every = self._of_subject.values()
        return {
            name: frozenset(other for own in every if name in own for other in own)
            for name in self.templates
        }

    def asked_more(self, fact: Fact) -> bool:
        """Tell whether subjects like that of a fact have other facts, so that it is known what else is asked.

        Args:
            fact: whose subject it is.
        """
        return bool(self._sharing[fact.relation] - self._of_subject[fact.subject])

    def _akin(self, fact: Fact) -> list[str]:
        """Return relations of which the subject has no fact here: such as its kind has, or else any."""
        own = self._of_subject[fact.subject]
        return sorted(self._sharing[fact.relation] - own) or sorted(set(self.templates) - own)

    def wordings(self, fact: Fact, most: int, seed: int) -> tuple[str, ...]:
        """Return prompts that ask for the same fact, its own first, seeded.

        Args:
            fact: to ask for.
            most: how many at the most.
            seed: of the choice among what other facts of the relation lend.
        """
        own = dict.fromkeys(fact.templates)
        lent = [one for one in self.templates[fact.relation] if one not in own]
        Random(f"{seed} {fact.request.id}").shuffle(lent)
        return tuple(fact.say(template) for template in [*own, *lent][:most])

    def other_questions(self, fact: Fact, most: int, seed: int) -> tuple[str, ...]:
        """Return prompts that ask something else about the same subject, which no fact here answers, seeded.

        Args:
            fact: whose subject it is.
            most: how many at the most.
            seed: of the choice.
        """
        chance = Random(f"other {seed} {fact.request.id}")
        akin = self._akin(fact)
        chance.shuffle(akin)
        # Relations in turn, so that few questions ask of many.
        found = [chance.choice(self.templates[name]) for name in akin]
        while akin and len(found) < most:
            found.append(chance.choice(self.templates[chance.choice(akin)]))
        return tuple(dict.fromkeys(fact.say(one) for one in found[:most]))


def facts_of(requests: Iterable[EditRequest]) -> Facts:
    """Return what requests say for training.

    Args:
        requests: whole, with their paraphrases and probes.

    Raises:
        RequestError: fewer than two facts, or none has another wording.
    """
    facts = facts_in(requests)
    if len(facts) < 2:
        raise RequestError(f"{len(facts)} facts are too few to train on")
    found = Facts(facts=facts)
    if all(len(one) == 1 for one in found.templates.values()):
        raise RequestError(
            "no fact to train on has a paraphrase, and a classifier learns from these what asks the same"
        )
    return found


def facts_in(requests: Iterable[EditRequest]) -> tuple[Fact, ...]:
    """Return what each request says.

    Args:
        requests: whole.
    """
    return tuple(_fact(request) for request in requests)


def _fact(request: EditRequest) -> Fact:
    subject = request.subject or request.prompt
    start, end = request.subject_span or (0, len(request.prompt))
    own = request.prompt[:start] + SUBJECT + request.prompt[end:]
    others = [one.replace(subject, SUBJECT) for one in request.paraphrases if subject in one]
    named = next((str(request.extra[name]) for name in _RELATION if name in request.extra), None)
    return Fact(
        request=request,
        relation=own if named is None else named,
        named=named is not None,
        subject=subject,
        templates=tuple(dict.fromkeys([own, *others])),
        neighbours=tuple(dict.fromkeys(probe.prompt for probe in request.locality)),
    )


def split(
    requests: Sequence[EditRequest], share: float, seed: int
) -> tuple[list[EditRequest], list[EditRequest]]:
    """Return requests to train on and others to validate on; no subject is in both.

    Args:
        requests: in any order.
        share: of the subjects, to validate on; at least one subject.
        seed: of the choice.
    """
    subjects = sorted({request.subject or request.prompt for request in requests})
    Random(f"split {seed}").shuffle(subjects)
    chosen = set(subjects[: max(1, round(share * len(subjects)))])
    held = [(one.subject or one.prompt) in chosen for one in requests]
    kept = [one for one, away in zip(requests, held, strict=True) if not away]
    return kept, [one for one, away in zip(requests, held, strict=True) if away]
