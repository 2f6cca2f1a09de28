"""Training of the scope classifier, on made-up states: a subject, a question and a wording side by side."""

import pytest
import torch
from attrs import evolve

from kedit_core.progress import Progress
from kedit_memory.lexicons import lexicon_of
from kedit_memory.pooling import Sites
from kedit_memory.scope import top_one
from kedit_memory.scope_calibration import auc_of, calibrated
from kedit_memory.scope_examples import Examples
from kedit_memory.scope_training import Lesson, train_scope, untrained

SITES = Sites(means=("a",), lasts=("b",))
START = untrained(SITES)
LESSON = Lesson(width=16, steps=150, lr=1e-2)
FACTS, WORDINGS, RELATIONS, WIDTH = 60, 4, 5, 24


def examples(seed, facts=FACTS):
    """Return prompts whose states are subject + relation + a loud wording that says nothing."""
    chance = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(99)
    relations = torch.randn(RELATIONS, WIDTH, generator=shared)
    wordings = 2 * torch.randn(RELATIONS, WORDINGS, WIDTH, generator=shared)
    subjects = torch.randn(facts, WIDTH, generator=chance)
    own = torch.arange(facts) % RELATIONS

    def said(subject, relation):
        return subjects[subject] + relations[relation] + wordings[relation]  # (wordings, width)

    asked = torch.cat([said(n, own[n]) for n in range(facts)])
    others = torch.cat([said(n, (own[n] + 1) % RELATIONS)[:1] for n in range(facts)])
    strange = torch.randn(facts, WIDTH, generator=chance)
    near = strange + relations[own] + wordings[own, 0]
    count = facts * WORDINGS
    return Examples(
        states=torch.cat([asked, others, near]),
        wordings=torch.arange(count).reshape(facts, WORDINGS),
        garbled=torch.full((facts, 1), -1),
        others=torch.arange(facts)[:, None] + count,
        neighbours=torch.arange(facts)[:, None] + count + facts,
        named=torch.zeros(facts, 0),
        subjects=tuple(f"{seed} {n}" for n in range(facts)),
        asked_more=torch.ones(facts, dtype=torch.bool),
    )


@pytest.fixture(scope="module")
def trained():
    return train_scope(examples(0), START, LESSON, Progress())


def met(classifier, told):
    """Return the share of the wordings that are nearest to their own fact."""
    memory = classifier.embed_edits(told.states[told.wordings[:, 0]], told.named)
    queries = classifier.embed(told.states[told.wordings[:, 1:].flatten()])
    own = torch.arange(len(told)).repeat_interleave(WORDINGS - 1)
    return float((top_one(queries, memory)[1] == own).float().mean())


def test_it_learns_what_asks_the_same_for_facts_that_it_never_saw(trained):
    held = examples(1)
    untrained = train_scope(examples(0), START, evolve(LESSON, steps=1, lr=1e-9), Progress())
    assert met(trained, held) > 0.85
    assert met(untrained, held) < 0.6


def test_equal_seeds_give_equal_bits_and_nobody_elses_draws_move():
    state = torch.get_rng_state()
    lesson = evolve(LESSON, steps=5, dropout=0.2)
    first, again, other = (
        train_scope(examples(0), START, evolve(lesson, seed=seed), Progress()) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_it_goes_on_from_an_earlier_classifier(trained):
    lesson = evolve(LESSON, steps=1, lr=1e-9)
    more = train_scope(examples(2), trained, lesson, Progress())
    states = examples(1).states
    torch.testing.assert_close(more.embed(states), trained.embed(states), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.9, 0.98])
def test_the_threshold_keeps_enough_out(trained, share):
    held, crowd = examples(1), examples(0)
    ready, found = calibrated(trained, held, crowd, rejects=share, rejects_same_subject=share)
    assert found.edits == 2 * FACTS
    assert min(found.rejected.values()) >= share - 1 / FACTS
    own = torch.cat([one.states[one.wordings[:, 0]] for one in (held, crowd)])
    memory = ready.embed_edits(own, torch.empty(len(own), 0))
    for kind in ("neighbours", "others"):
        near = top_one(ready.embed(held.states[getattr(held, kind)[:, 0]]), memory)[0]
        assert found.rejected[kind] == float((near < ready.threshold).float().mean())
    loose, more = calibrated(trained, held, crowd, rejects=0.5, rejects_same_subject=0.5)
    assert loose.threshold < ready.threshold
    assert more.accepted >= found.accepted > 0.4


def test_the_threshold_is_as_high_as_other_wordings_allow(trained):
    held, crowd = examples(1), examples(0)
    shares = {"rejects": 0.5, "rejects_same_subject": 0.5}
    loose, most = calibrated(trained, held, crowd, **shares)
    ready, found = calibrated(trained, held, crowd, **shares, accepts=0.9)
    assert ready.threshold > loose.threshold
    assert 0.8 < found.accepted < most.accepted
    shares = {"rejects": 0.999, "rejects_same_subject": 0.999}
    strict, _ = calibrated(trained, held, crowd, **shares)
    assert (
        calibrated(trained, held, crowd, **shares, accepts=0.999)[0].threshold == strict.threshold
    )


def test_the_threshold_expects_a_memory_of_edits_that_nobody_trained_on(trained):
    """Strangers meet few of the edits that were trained on, and many of as many others."""
    held, crowd = examples(1), examples(0)
    ready, _ = calibrated(trained, held, crowd, rejects=0.9, rejects_same_subject=0.01)
    alone, _ = calibrated(trained, held, held, rejects=0.9, rejects_same_subject=0.01)
    fresh = examples(3, 2 * FACTS)
    near = ready.embed(fresh.states[fresh.neighbours[:, 0]])
    memory = ready.embed_edits(fresh.states[fresh.wordings[:, 0]], fresh.named)
    kept_out = float((top_one(near, memory)[0] < ready.threshold).float().mean())
    assert 0.8 < kept_out < 0.99
    assert alone.threshold == pytest.approx(ready.threshold, abs=0.05)


def test_auc_counts_pairs_and_ties_half():
    inside, outside = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0])
    assert auc_of(inside, outside) == pytest.approx((2 + 2 + 1.5) / 6)
    assert auc_of(outside, inside) == pytest.approx(0.5 / 6)
    same = torch.ones(4)
    assert auc_of(same, same) == 0.5


def worded(seed, facts=FACTS):
    """Return examples with words: each fact has a wording in words that no map can read."""
    told = examples(seed, facts)
    lexicon = lexicon_of([], 256)
    subjects = [f"Subject{seed}x{n}" for n in range(facts)]
    place = torch.arange(len(told.states))
    names = [""] * len(told.states)
    for n, subject in enumerate(subjects):
        for table in (told.wordings, told.others):
            for one in table[n].tolist():
                names[one] = f"asked of {subject}"
    strange = torch.randn(facts, WIDTH, generator=torch.Generator().manual_seed(seed + 50))
    unknown = torch.randn(WIDTH, generator=torch.Generator().manual_seed(98))
    states = torch.cat(
        [told.states, 3 * strange + 3 * unknown]
    )  # words that nobody knows are alike
    said = lexicon.said([*names, *(f"hardly to be read: {one}" for one in subjects)])
    return lexicon, evolve(
        told,
        states=torch.cat([states, said], dim=1),
        garbled=torch.arange(facts)[:, None] + len(place),
        named=lexicon.named(subjects),
    )


def test_words_find_a_subject_where_the_rest_of_a_prompt_says_nothing():
    lexicon, told = worded(0)
    lesson = evolve(LESSON, steps=200)
    trained = train_scope(told, untrained(SITES, lexicon), lesson, Progress())
    _, held = worded(7)
    ready, found = calibrated(trained, held, told, rejects=0.95, rejects_same_subject=0.9)
    assert ready.words > 0
    memory = ready.embed_edits(held.states[held.wordings[:, 0]], held.named)
    garbled = ready.match(ready.embed(held.states[held.garbled[:, 0]]), memory)
    assert float((garbled.edit == torch.arange(FACTS)).float().mean()) > 0.4
    assert found.accepted > 0.8
    # The same subject is named in other questions too: these the map keeps out.
    assert found.rejected["others"] >= 0.89
    vectors = ready.embed(held.states)
    mapped, leanings = vectors[:, : LESSON.width], vectors[:, LESSON.width]
    assert leanings[held.garbled].mean() > leanings[held.wordings].mean() + 0.2
    place = top_one(mapped[held.garbled[:, 0]], mapped[held.wordings[:, 0]])[1]
    assert float((place == torch.arange(FACTS)).float().mean()) < 0.3


def test_nonsense_about_a_subject_sets_no_threshold_where_real_questions_are_known(trained):
    held, crowd = examples(1), examples(0)
    asked = torch.arange(FACTS) < FACTS // 2
    strange = torch.where(asked[:, None], held.others, held.wordings[:, 1:2])  # as near as can be
    mixed = evolve(held, others=strange, asked_more=asked)
    shares = {"rejects": 0.5, "rejects_same_subject": 0.95}
    ready, found = calibrated(trained, mixed, crowd, **shares)
    every, _ = calibrated(trained, evolve(mixed, asked_more=~asked & asked), crowd, **shares)
    assert ready.threshold < every.threshold
    assert found.rejected["others"] >= 0.9
