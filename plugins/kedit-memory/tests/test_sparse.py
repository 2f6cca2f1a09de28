"""BM25 over token ids: the formula, and what a query shares with an edit."""

import math

import pytest
import torch

from kedit_memory.sparse import SparseIndex

PROMPTS = [(1, 2, 3), (1, 4), (1, 2, 5, 6, 6), (7,), (8, 9, 10, 11)]


def plain(query, edit):
    """Return the score by the formula, over sets of tokens."""
    held, n = [set(one) for one in PROMPTS], len(PROMPTS)
    mean = sum(map(len, held)) / n
    weight = 2.2 / (1 + 1.2 * (0.25 + 0.75 * len(held[edit]) / mean))
    found = 0.0
    for token in set(query) & held[edit]:
        holding = sum(token in one for one in held)
        if holding <= n / 2:
            found += math.log(1 + (n - holding + 0.5) / (holding + 0.5)) * weight
    return found


def test_scores_are_those_of_the_formula():
    index = SparseIndex(PROMPTS)
    for query in [(2, 2, 3, 99), (1,), (6, 5, 2, 7), ()]:
        wanted = torch.tensor([plain(query, edit) for edit in range(len(PROMPTS))])
        torch.testing.assert_close(index.scores(query), wanted)


def test_a_token_that_most_edits_hold_finds_none():
    assert not SparseIndex(PROMPTS).scores((1,)).any()


@pytest.mark.parametrize("edit", range(len(PROMPTS)))
def test_an_edits_own_prompt_shares_all_of_it(edit):
    index = SparseIndex(PROMPTS)
    assert index.share(PROMPTS[edit], edit) == pytest.approx(1.0)
    assert index.share((99,), edit) == 0.0


def test_no_edits_have_no_scores():
    assert SparseIndex([]).scores((1, 2)).shape == (0,)
