"""The scope classifier: the nearest edit, a probability, and what it says of an empty memory."""

import pytest
import torch
from attrs import evolve

from kedit_core import EditRequest
from kedit_core.errors import DeltaError
from kedit_memory.kept import OUTSIDE
from kedit_memory.lexicons import lexicon_of
from kedit_memory.pooling import Sites
from kedit_memory.scope import ScopeClassifier, classifier_from, request_ids, top_one

CLASSIFIER = ScopeClassifier(
    projection=torch.randn(8, 12, generator=torch.Generator().manual_seed(0)),
    offset=torch.zeros(8),
    leaning=torch.randn(13, generator=torch.Generator().manual_seed(5)) / 12**0.5,
    sites=Sites(means=("a", "b"), lasts=("b",)),
    threshold=0.8,
    temperature=0.05,
)


def directions(number, width=8, seed=0):
    found = torch.randn(number, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=1)


@pytest.mark.parametrize("edits", [1, 7, 8192, 20_000])
def test_the_search_finds_what_the_whole_matrix_shows(edits):
    queries, memory = directions(5), directions(edits, seed=1)
    best, place = top_one(queries, memory)
    wanted = (queries @ memory.T).max(1)
    torch.testing.assert_close(best, wanted.values)
    assert torch.equal(place, wanted.indices)


def test_of_equal_edits_the_first_is_met():
    memory = directions(3).repeat(4000, 1)
    assert top_one(directions(3), memory)[1].tolist() == [0, 1, 2]


def test_a_prompt_meets_the_edit_it_is_nearest_to_from_the_threshold_on():
    memory = directions(6)
    near = torch.nn.functional.normalize(memory[2] + 0.1 * directions(1, seed=3)[0], dim=0)
    far = -memory[2]
    match = CLASSIFIER.match(torch.stack([near, far]), memory)
    assert match.edit[0] == 2
    assert match.edit[1] == OUTSIDE
    assert match.probability[0] > 0.5 > match.probability[1]
    assert request_ids(match, list("abcdef"))[0] == "c"
    assert request_ids(match, list("abcdef"))[1] is None


def test_an_empty_memory_is_met_by_nobody():
    match = CLASSIFIER.match(directions(2), torch.empty(0, 8))
    assert match.edit.tolist() == [OUTSIDE, OUTSIDE]
    assert match.probability.tolist() == [0, 0]


def test_it_comes_back_from_its_tensors_and_settings():
    again = classifier_from(CLASSIFIER.tensors(), CLASSIFIER.settings(), "here")
    assert again == CLASSIFIER
    pooled = torch.randn(3, 12)
    assert torch.equal(again.embed(pooled), CLASSIFIER.embed(pooled))
    with pytest.raises(DeltaError, match="no whole scope classifier"):
        classifier_from({}, CLASSIFIER.settings(), "here")


def test_a_prompt_leans_to_all_edits_alike():
    states = torch.randn(5, 12, generator=torch.Generator().manual_seed(4))
    edits = CLASSIFIER.embed_edits(states[:3], torch.empty(3, 0))
    scores = CLASSIFIER.embed(states) @ edits.T
    mapped = torch.nn.functional.normalize(states @ CLASSIFIER.projection.T, dim=1)
    leanings = torch.tanh(states @ CLASSIFIER.leaning[:-1] + CLASSIFIER.leaning[-1])
    lacks = (CLASSIFIER.threshold + 1e-4 - 1 - leanings[:3]).clamp(min=0)
    torch.testing.assert_close(scores, mapped @ mapped[:3].T + leanings[:, None] + lacks)


def test_an_edits_own_prompt_is_in_its_scope_however_it_leans():
    states = torch.randn(200, 12, generator=torch.Generator().manual_seed(6))
    none = torch.empty(200, 0)
    leaning = torch.cat([3 * CLASSIFIER.leaning[:-1], torch.tensor([-1.0])])
    away = evolve(CLASSIFIER, leaning=leaning)
    plain = evolve(away, threshold=-torch.inf).embed_edits(states, none)
    given = away.embed_edits(states, none)
    queries = away.embed(states)
    assert float((queries * plain).sum(1).min()) < away.threshold
    assert bool(((queries * given).sum(1) >= away.threshold).all())
    enough = (queries * plain).sum(1) > away.threshold + 1e-3
    assert torch.equal(given[enough], plain[enough])
    again = evolve(away, threshold=1.5).embed_edits(states, none)
    assert bool(((queries * again).sum(1) >= 1.5).all())


def test_words_add_the_share_of_the_subject_that_stands_in_the_prompt():
    lexicon = lexicon_of(["The capital of Peru is"], 1024)
    classifier = evolve(CLASSIFIER, lexicon=lexicon, words=0.7)
    states = torch.randn(2, 12, generator=torch.Generator().manual_seed(4))
    said = lexicon.said(["Who rules Upper Volta?", "Who rules Chile?"])
    whole = torch.cat([states, said], dim=1)
    edits = classifier.embed_edits(whole[:1], lexicon.named(["Upper Volta"]))
    scores = classifier.embed(whole) @ edits.T
    assert edits.shape == (1, classifier.length)
    alone = CLASSIFIER.embed(states) @ CLASSIFIER.embed_edits(states[:1], torch.empty(1, 0)).T
    assert float(alone[0]) > CLASSIFIER.threshold + 0.01
    torch.testing.assert_close(scores - alone, torch.tensor([[0.7], [0.0]]), rtol=0, atol=0.15)
    again = classifier_from(classifier.tensors(), classifier.settings(), "here")
    assert again == classifier
    assert again != CLASSIFIER
    request = EditRequest(prompt="{} is", subject="Upper Volta", target_new="x")
    assert torch.equal(classifier.named([request]), lexicon.named(["Upper Volta"]))
    assert CLASSIFIER.named([request]).shape == (1, 0)
