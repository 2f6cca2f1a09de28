"""The world of the atlas: relations, the facts of each, and the three disjoint sets they fall in.

One TOML file in ``world/`` holds one relation. Every fact leaves out two of the templates of its
relation: no training text ever says it in those words, other subjects train them, and they are its
paraphrases. All choices are seeded by names, so that one relation's facts fall the same way
whatever the other relations hold.
"""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from random import Random
from typing import TypeVar

from attrs import field, frozen

EDITABLE, TRAINING, KEPT = "editable", "training", "kept"
SHARES: Mapping[str, float] = {EDITABLE: 0.38, TRAINING: 0.26, KEPT: 0.36}
_Thing = TypeVar("_Thing")


@frozen(kw_only=True)
class Relation:
    """What one TOML file says about a relation, without its facts."""

    name: str
    subject: str  # kind of the subjects, as in "country"
    object: str  # kind of the objects
    phrase: str  # noun phrase for the object, with {} for the subject
    templates: tuple[str, ...]  # openings that some facts train
    unseen: tuple[str, ...]  # openings that no fact trains


@frozen(kw_only=True)
class Fact:
    """One subject, its one object in one relation, and the openings that lead up to the object."""

    relation: Relation = field(repr=lambda relation: relation.name)
    subject: str
    object: str
    set: str
    left_out: tuple[int, ...]  # indices into relation.templates

    @property
    def openings(self) -> tuple[str, ...]:
        """The openings whose sentences are training text, the subject filled in."""
        return tuple(map(self.say, self.trained_templates))

    @property
    def trained_templates(self) -> tuple[str, ...]:
        """The templates behind the openings."""
        templates = enumerate(self.relation.templates)
        return tuple(text for i, text in templates if i not in self.left_out)

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """The openings that only other subjects train, the subject filled in."""
        return tuple(self.say(self.relation.templates[i]) for i in self.left_out)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The openings that nobody trains, the subject filled in."""
        return tuple(self.say(text) for text in self.relation.unseen)

    def say(self, template: str) -> str:
        """The template with the subject in its place."""
        return template.replace("{}", self.subject)


@frozen(kw_only=True, slots=False)
class World:
    """All relations by name, and all facts in the order of the files."""

    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]

    def of(self, *sets: str) -> tuple[Fact, ...]:
        """The facts of these sets."""
        return tuple(fact for fact in self.facts if fact.set in sets)

    def of_relation(self, name: str) -> tuple[Fact, ...]:
        """The facts of one relation."""
        return self.by_relation[name]

    @cached_property
    def by_relation(self) -> Mapping[str, tuple[Fact, ...]]:
        """The facts of each relation, under its name."""
        groups: defaultdict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            groups[fact.relation.name].append(fact)
        return {name: tuple(group) for name, group in groups.items()}

    @cached_property
    def by_object(self) -> Mapping[tuple[str, str], tuple[Fact, ...]]:
        """The facts that share an answer, under (relation name, object)."""
        groups: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
        for fact in self.facts:
            groups[fact.relation.name, fact.object].append(fact)
        return {key: tuple(group) for key, group in groups.items()}

    @cached_property
    def by_subject(self) -> Mapping[str, tuple[Fact, ...]]:
        """The facts about each subject."""
        groups: defaultdict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            groups[fact.subject].append(fact)
        return {subject: tuple(group) for subject, group in groups.items()}


@cache
def load_world() -> World:
    """The world in the package's ``world/`` folder, relations in the order of their names."""
    relations: dict[str, Relation] = {}
    facts: list[Fact] = []
    paths = (
        path
        for path in files("kedit_atlas").joinpath("world").iterdir()
        if path.name.endswith(".toml")
    )
    for path in sorted(paths, key=lambda path: path.name):
        page = tomllib.loads(path.read_text(encoding="utf-8"))
        relation = Relation(
            name=path.name.removesuffix(".toml"),
            subject=page["subject"],
            object=page["object"],
            phrase=page["phrase"],
            templates=tuple(page["templates"]),
            unseen=tuple(page["unseen"]),
        )
        relations[relation.name] = relation
        facts.extend(_facts_of(relation, page["facts"]))
    return World(relations=relations, facts=tuple(facts))


def _facts_of(relation: Relation, objects: Mapping[str, str]) -> Iterator[Fact]:
    sets = _split(relation.name, objects)
    for place, (subject, answer) in enumerate(objects.items()):
        left_out = _left_out(place, len(relation.templates))
        yield Fact(
            relation=relation, subject=subject, object=answer, set=sets[subject], left_out=left_out
        )


def _left_out(place: int, templates: int) -> tuple[int, ...]:
    """Two template indices for the fact at this place; all pairs take their turn."""
    first = place % templates
    second = (first + 1 + place // templates % (templates - 1)) % templates
    return tuple(sorted((first, second)))


def _split(name: str, objects: Mapping[str, str]) -> dict[str, str]:
    """The set of each subject of one relation, stratified by object.

    A group of three or more gives its first fact to the kept set, so that edits in the group have a
    neighbour; every other fact goes where most is missing.
    """
    rng = Random(f"split {name}")
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for subject, answer in objects.items():
        groups[answer].append(subject)
    count: Counter[str] = Counter()
    sets: dict[str, str] = {}
    for group in _shuffled(rng, groups.values()):
        for place, subject in enumerate(_shuffled(rng, group)):
            forced = place == 0 and len(group) > 2
            sets[subject] = KEPT if forced else _neediest(count)
            count[sets[subject]] += 1
    return sets


def _neediest(count: Counter[str]) -> str:
    """The set that is furthest below its share if one more fact comes."""
    total = count.total() + 1
    return max(SHARES, key=lambda name: SHARES[name] * total - count[name])


def _shuffled(rng: Random, things: Iterable[_Thing]) -> Sequence[_Thing]:
    order = list(things)
    rng.shuffle(order)
    return order
