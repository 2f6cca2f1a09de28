"""Training of the scope classifier, on made-up states: a subject, a question and a wording side by side."""

import pytest
import torch
from attrs import evolve

from kedit_core.progress import Progress
from kedit_memory.pooling import Sites
from kedit_memory.scope import top_one
from kedit_memory.scope_examples import Examples
from kedit_memory.scope_training import Lesson, auc_of, calibrated, train_scope

SITES = Sites(means=("a",), lasts=("b",))
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
        pooled=torch.cat([asked, others, near]),
        wordings=torch.arange(count).reshape(facts, WORDINGS),
        others=torch.arange(facts)[:, None] + count,
        neighbours=torch.arange(facts)[:, None] + count + facts,
    )


@pytest.fixture(scope="module")
def trained():
    return train_scope(examples(0), SITES, LESSON, Progress())


def met(classifier, told):
    """Return the share of the wordings that are nearest to their own fact."""
    memory = classifier.embed(told.pooled[told.wordings[:, 0]])
    queries = classifier.embed(told.pooled[told.wordings[:, 1:].flatten()])
    own = torch.arange(len(told)).repeat_interleave(WORDINGS - 1)
    return float((top_one(queries, memory)[1] == own).float().mean())


def test_it_learns_what_asks_the_same_for_facts_that_it_never_saw(trained):
    held = examples(1)
    untrained = train_scope(examples(0), SITES, evolve(LESSON, steps=1, lr=1e-9), Progress())
    assert met(trained, held) > 0.85
    assert met(untrained, held) < 0.6


def test_equal_seeds_give_equal_bits_and_nobody_elses_draws_move():
    state = torch.get_rng_state()
    lesson = evolve(LESSON, steps=5, dropout=0.2)
    first, again, other = (
        train_scope(examples(0), SITES, evolve(lesson, seed=seed), Progress()) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_it_goes_on_from_an_earlier_classifier(trained):
    lesson = evolve(LESSON, steps=1, lr=1e-9)
    more = train_scope(examples(2), SITES, lesson, Progress(), start=trained)
    pooled = examples(1).pooled
    torch.testing.assert_close(more.embed(pooled), trained.embed(pooled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.9, 0.98])
def test_the_threshold_keeps_enough_out(trained, share):
    held, crowd = examples(1), examples(0)
    ready, found = calibrated(trained, held, crowd, rejects=share, rejects_same_subject=share)
    assert found.edits == 2 * FACTS
    assert min(found.rejected.values()) >= share - 1 / FACTS
    memory = ready.embed(torch.cat([one.pooled[one.wordings[:, 0]] for one in (held, crowd)]))
    for kind in ("neighbours", "others"):
        near = top_one(ready.embed(held.pooled[getattr(held, kind)[:, 0]]), memory)[0]
        assert found.rejected[kind] == float((near < ready.threshold).float().mean())
    loose, more = calibrated(trained, held, crowd, rejects=0.5, rejects_same_subject=0.5)
    assert loose.threshold < ready.threshold
    assert more.accepted >= found.accepted > 0.5


def test_the_threshold_expects_a_memory_of_edits_that_nobody_trained_on(trained):
    """Strangers meet few of the edits that were trained on, and many of as many others."""
    held, crowd = examples(1), examples(0)
    ready, _ = calibrated(trained, held, crowd, rejects=0.9, rejects_same_subject=0.01)
    alone, _ = calibrated(trained, held, held, rejects=0.9, rejects_same_subject=0.01)
    fresh = examples(3, 2 * FACTS)
    near = ready.embed(fresh.pooled[fresh.neighbours[:, 0]])
    memory = ready.embed(fresh.pooled[fresh.wordings[:, 0]])
    kept_out = float((top_one(near, memory)[0] < ready.threshold).float().mean())
    assert 0.8 < kept_out < 0.99
    assert alone.threshold == pytest.approx(ready.threshold, abs=0.05)


def test_auc_counts_pairs_and_ties_half():
    inside, outside = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0])
    assert auc_of(inside, outside) == pytest.approx((2 + 2 + 1.5) / 6)
    assert auc_of(outside, inside) == pytest.approx(0.5 / 6)
    same = torch.ones(4)
    assert auc_of(same, same) == 0.5
