"""Context prefixes: sampled by the unedited model, seeded and kept."""

import pytest
import torch

from kedit_core import Dense, TensorCache, Weights, layout_of
from kedit_core.config import load_config
from kedit_core.errors import ConfigError
from kedit_locate.config import Context
from kedit_locate.sampling import sample, start_token
from kedit_locate.templates import BARE, context_prefixes

SMALL = Context(lengths=(3, 6), count=3)


def prefixes(model, tokenizer, context=SMALL, seed=0, weights=None, folder=None):
    cache = TensorCache(folder)
    return context_prefixes(model, tokenizer, context, seed, weights or Weights(model), cache)


@pytest.fixture
def elsewhere(tmp_path):
    return tmp_path / "another cache"


def test_the_bare_prompt_comes_first_and_then_so_many_of_each_length(model, tokenizer):
    found = prefixes(model, tokenizer)
    assert found[0] == BARE == ""
    assert len(found) == 1 + 2 * 3
    assert all(text.endswith(". ") and not text.startswith(" ") for text in found[1:])
    assert all("<|end|>" not in text and "\n" not in text for text in found)


def test_a_count_of_zero_leaves_the_bare_prompt(model, tokenizer, own_cache, tmp_path):
    assert prefixes(model, tokenizer, Context(count=0)) == ("",)
    assert not (tmp_path / "cache").exists()


def test_a_seed_gives_the_same_prefixes_in_a_fresh_cache_and_another_seed_others(
    model, tokenizer, elsewhere
):
    first = prefixes(model, tokenizer)
    assert prefixes(model, tokenizer, folder=elsewhere) == first
    assert prefixes(model, tokenizer, seed=1) != first


def test_prefixes_are_kept_and_not_sampled_again(model, tokenizer):
    first = prefixes(model, tokenizer)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    again = prefixes(model, tokenizer)
    assert (again, calls) == (first, [])
    prefixes(model, tokenizer, seed=5)
    handle.remove()
    assert calls


def test_prefixes_come_from_the_unedited_model(model, tokenizer, elsewhere):
    weights, down = Weights(model), layout_of(model).down_of(0)
    first = prefixes(model, tokenizer, weights=weights)
    update = torch.randn(down.out_features, down.in_features, dtype=torch.float64) * 3
    with weights.temporarily([Dense(weight=down.weight, update=update)]):
        edited = model.get_parameter(down.weight).clone()
        assert prefixes(model, tokenizer, weights=weights, folder=elsewhere) == first
        assert torch.equal(model.get_parameter(down.weight), edited)


def test_lengths_count_the_start_token_and_draws_are_among_the_likeliest(model, tokenizer):
    start = torch.full((4, 1), start_token(tokenizer))
    ids = sample(model, start, 5, torch.Generator().manual_seed(0), top_k=2)
    assert ids.shape == (4, 6)
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 4
    for row in ids:
        logits = model(input_ids=row[None]).logits[0]
        for place in range(1, 6):
            assert row[place] in logits[place - 1].topk(2).indices


def test_one_choice_is_greedy_and_more_choices_than_tokens_are_all(model):
    start = torch.tensor([[7]])
    greedy = sample(model, start, 6, torch.Generator().manual_seed(0), top_k=1)
    assert torch.equal(greedy, sample(model, start, 6, torch.Generator().manual_seed(9), top_k=1))
    assert sample(model, start, 2, torch.Generator().manual_seed(0), top_k=10_000).shape == (1, 3)


@pytest.mark.parametrize("lengths", [[0], [5, 1], [-3]])
def test_a_prefix_of_nothing_but_its_start_token_is_refused(lengths):
    with pytest.raises(ConfigError, match="lengths"):
        load_config(Context, {"lengths": lengths})
