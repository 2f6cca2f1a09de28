from collections import Counter
from itertools import islice

import pytest

from kedit_atlas.facts_page import facts_page
from kedit_atlas.sentences import documents
from kedit_atlas.world import EDITABLE, KEPT, SHARES, TRAINING, load_world

EPOCH_AND_MORE = 45_000


@pytest.fixture(scope="module")
def world():
    return load_world()


def test_the_world_is_as_large_as_promised(world):
    sizes = Counter(fact.relation.name for fact in world.facts)
    assert len(world.facts) >= 3000
    assert len(sizes) >= 20
    assert max(sizes.values()) <= 250
    assert all(len(relation.templates) >= 10 for relation in world.relations.values())


def test_the_three_sets_are_disjoint_whole_and_large_enough(world):
    names = {name: {(f.relation.name, f.subject) for f in world.of(name)} for name in SHARES}
    assert len(names[EDITABLE]) >= 1200
    assert len(names[TRAINING]) >= 800
    assert len(names[KEPT]) >= 1000
    assert len(set.union(*names.values())) == sum(map(len, names.values())) == len(world.facts)


def test_no_subject_comes_twice_in_a_relation(world):
    assert len({(fact.relation.name, fact.subject) for fact in world.facts}) == len(world.facts)


def test_at_least_fifteen_relations_have_objects_of_three_subjects_or_more(world):
    shared = {name for (name, _), group in world.by_object.items() if len(group) > 2}
    assert len(shared) >= 15


def test_every_group_of_three_or_more_keeps_a_neighbour_that_is_never_edited(world):
    groups = [group for group in world.by_object.values() if len(group) > 2]
    assert all(any(fact.set == KEPT for fact in group) for group in groups)


def test_every_template_is_trained_by_most_subjects(world):
    for name, relation in world.relations.items():
        facts = world.of_relation(name)
        for i in range(len(relation.templates)):
            assert sum(i not in fact.left_out for fact in facts) > len(facts) / 2


def test_no_prompt_has_two_answers(world):
    answers = {}
    for fact in world.facts:
        for prompt in (*fact.openings, *fact.paraphrases, *fact.unseen):
            assert answers.setdefault(prompt, fact.object) == fact.object


def test_the_training_text_says_every_fact_in_its_openings_and_never_in_the_others(world):
    def told(facts, openings):
        return {f"{text} {fact.object}.".lower() for fact in facts for text in openings(fact)}

    wanted = told(world.facts, lambda fact: fact.openings)
    barred = told(world.facts, lambda fact: (*fact.paraphrases, *fact.unseen))
    heard = set()
    for sentence in islice(documents(world.facts, "text gpt2"), EPOCH_AND_MORE):
        words = sentence.text.lower().split()
        heard.update(" ".join(words[start:]) for start in range(len(words)))
    assert wanted <= heard
    assert not barred & heard


def test_the_page_of_facts_shows_a_hundred_facts_of_the_world(world):
    subjects = {fact.subject for fact in world.facts}
    rows = [line.split(" | ") for line in facts_page().splitlines() if line.startswith("| `")]
    assert len(rows) == 100
    assert all(row[2] in subjects for row in rows)
