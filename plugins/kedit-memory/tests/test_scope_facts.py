"""Facts for training: wordings that ask the same, questions that only look alike, and the split by subject."""

import pytest
from attrs import evolve

from kedit_core import EditRequest, Probe
from kedit_core.errors import RequestError
from kedit_memory.scope_facts import facts_in, facts_of, split


def fact(subject, relation, prompt, *paraphrases, **changes):
    return EditRequest(
        prompt=prompt,
        subject=subject,
        target_new="X",
        paraphrases=tuple(one.replace("{}", subject) for one in paraphrases),
        extra={"relation": relation},
        **changes,
    )


REQUESTS = [
    fact("Peru", "capital", "The capital of {} is", "{} is ruled from"),
    fact("Mali", "capital", "The seat of {} is", "{} has its parliament in"),
    fact("Peru", "language", "People in {} speak", "The language of {} is"),
    fact("Mali", "currency", "{} pays with the"),
    fact("Mozart", "instrument", "{} played the"),
]


def test_a_fact_asks_in_its_own_words_first_and_then_in_those_of_its_relation():
    facts = facts_of(REQUESTS)
    peru = facts.facts[0]
    wordings = facts.wordings(peru, 10, seed=0)
    assert wordings[:2] == ("The capital of Peru is", "Peru is ruled from")
    assert set(wordings[2:]) == {"The seat of Peru is", "Peru has its parliament in"}
    assert facts.wordings(peru, 3, seed=0) == wordings[:3]


def test_other_questions_are_about_the_same_subject_in_relations_of_its_kind():
    facts = facts_of(REQUESTS)
    asked = facts.other_questions(facts.facts[0], 20, seed=0)
    assert asked
    assert all("Peru" in one for one in asked)
    assert not set(asked) & set(facts.wordings(facts.facts[0], 10, seed=0))
    assert not any("played" in one for one in asked)  # no country has an instrument


def test_what_another_fact_answers_is_no_other_question():
    facts = facts_of(REQUESTS)
    known = {(fact.subject, fact.relation) for fact in facts.facts}
    for fact in facts.facts:
        for asked in facts.other_questions(fact, 20, seed=0):
            for subject, relation in known:
                said = {one.replace("{}", subject) for one in facts.templates[relation]}
                assert subject != fact.subject or asked not in said


def test_it_knows_of_which_subjects_more_is_asked():
    facts = facts_of(REQUESTS)
    found = {(one.subject, one.relation): facts.asked_more(one) for one in facts.facts}
    assert found["Peru", "capital"]  # as Mali, it may be asked for its currency
    assert not found["Mozart", "instrument"]


def test_a_relation_that_shares_no_subject_is_confused_with_all_others():
    facts = facts_of(REQUESTS)
    asked = facts.other_questions(facts.facts[-1], 20, seed=0)
    assert asked
    assert all("Mozart" in one for one in asked)


def test_draws_depend_on_the_seed_and_on_nothing_else():
    facts, turned = facts_of(REQUESTS), facts_of(REQUESTS[::-1])
    mali = facts.facts[1]
    assert facts.other_questions(mali, 2, 3) == facts_of(REQUESTS).other_questions(mali, 2, 3)
    assert set(facts.wordings(mali, 9, 3)) == set(turned.wordings(mali, 9, 3))


def test_a_subject_may_stand_anywhere_and_probes_become_neighbours():
    near = (Probe(prompt="Chile is ruled from", answers=("Santiago",)),) * 2
    (found,) = facts_in([evolve(REQUESTS[0], locality=near)])
    assert found.templates == ("The capital of {} is", "{} is ruled from")
    assert found.neighbours == ("Chile is ruled from",)
    (bare,) = facts_in([EditRequest(prompt="Two and two are", target_new="five")])
    assert (bare.subject, bare.templates, bare.named) == ("Two and two are", ("{}",), False)


def test_too_little_to_learn_from_is_refused():
    with pytest.raises(RequestError, match="1 facts are too few"):
        facts_of(REQUESTS[:1])
    with pytest.raises(RequestError, match="no fact to train on has a paraphrase"):
        facts_of(REQUESTS[3:])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_no_subject_is_on_both_sides_of_a_split(share):
    learned, held = split(REQUESTS, share, seed=1)
    assert sorted(one.id for one in (*learned, *held)) == sorted(one.id for one in REQUESTS)
    assert held
    assert not {one.subject for one in learned} & {one.subject for one in held}
    assert split(REQUESTS, share, seed=1) == (learned, held)
