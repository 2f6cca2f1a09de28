"""What a model says after prompts, against one plain, unpadded forward pass for each pair."""

import random

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from kedit_core.scoring import continue_greedily, continue_sampling, score_answers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 64, "initializer_range": 0.4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 24}
ENDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def _built(family, tiny):
    torch.manual_seed(0)
    match family:
        case "gpt2":
            return tiny("gpt2", torch.float64, initializer_range=0.4)
        case "llama":
            return tiny("llama", torch.float64, initializer_range=0.4)
        case "mistral":  # grouped queries, a window shorter than the prompts
            config = MistralConfig(**SIZES, **HEADS, **ENDS, sliding_window=5)
            model = MistralForCausalLM(config)
        case "gemma2":  # every other layer slides
            model = Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, **ENDS, sliding_window=5))
        case "gpt_neo":  # slides, and its cache does not know
            model = GPTNeoForCausalLM(
                GPTNeoConfig(
                    hidden_size=16,
                    num_layers=2,
                    num_heads=2,
                    vocab_size=64,
                    max_position_embeddings=64,
                    attention_types=[[["global", "local"], 1]],
                    window_size=4,
                    initializer_range=0.4,
                    **ENDS,
                )
            )
        case "mamba":  # keeps no keys and values
            model = MambaForCausalLM(MambaConfig(**SIZES, **ENDS, state_size=4))
        case "jamba":  # keeps some, and a recurrent state
            kinds = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
            sizes = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
            state = {"mamba_d_state": 4, "mamba_dt_rank": 4}
            model = JambaForCausalLM(JambaConfig(**SIZES, **ENDS, **kinds, **sizes, **state))
        case "mpt":  # ALiBi over the places of a row, pads counted
            model = MptForCausalLM(
                MptConfig(d_model=16, n_layers=2, n_heads=2, vocab_size=64, max_seq_len=64)
            )
    return model.double().eval()


# The others compute in float32 somewhere, whatever the model's dtype.
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-10, "mistral": 1e-10}
LOOSE = dict.fromkeys(("gemma2", "gpt_neo", "mpt", "mamba", "jamba"), 1e-5)
FAMILIES = {**TOLERANCE, **LOOSE}


@pytest.fixture
def model(request, tiny):
    return _built(getattr(request, "param", "llama"), tiny)


def _ids(count, source):
    return tuple(source.randrange(2, 64) for _ in range(count))


def _ragged_pairs():
    source = random.Random(0)
    prompts = [_ids(count, source) for count in (3, 9, 14, 1, 5, 5)]
    answers = [(1, 6, 3), (4,), (1, 1, 2), (2, 11), (1,), (3, 1)]
    return [
        (prompt, _ids(count, source))
        for prompt, counts in zip(prompts, answers, strict=True)
        for count in counts
    ]


@torch.no_grad()
def _in_one_forward(model, prompt, answer):
    """Return log-probabilities (tokens, vocabulary) at the answer's positions; nothing is padded."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


@torch.no_grad()
def _one_by_one(model, prompt, tokens):
    said = list(prompt)
    for _ in range(tokens):
        said.append(int(model(input_ids=torch.tensor([said])).logits[0, -1].argmax()))
    return tuple(said[len(prompt) :])


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_every_answer_is_scored_as_in_a_plain_forward_of_its_own(model, request):
    close = {"rtol": 0, "atol": FAMILIES[request.node.callspec.params["model"]]}
    pairs = _ragged_pairs()
    for (prompt, answer), found in zip(pairs, score_answers(model, pairs), strict=True):
        expected = _in_one_forward(model, prompt, answer)
        own = expected[torch.arange(len(answer)), list(answer)]
        torch.testing.assert_close(found.log_probs.double(), own, **close)
        assert found.top.tolist() == expected.argmax(-1).tolist()
        assert found.hits.tolist() == [t == a for t, a in zip(found.top, answer, strict=True)]
        assert found.nll == pytest.approx(-own.mean().item(), abs=close["atol"])


@pytest.mark.parametrize("model", TOLERANCE, indirect=True)
def test_whole_distributions_are_those_of_a_plain_forward(model):
    pairs = _ragged_pairs()
    for pair, found in zip(pairs, score_answers(model, pairs, distributions=True), strict=True):
        expected = _in_one_forward(model, *pair)
        torch.testing.assert_close(found.distribution, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_greedy_continuations_are_those_of_growing_the_text_token_by_token(model):
    source = random.Random(1)
    prompts = [_ids(count, source) for count in (3, 9, 14, 1, 5, 3)]
    assert continue_greedily(model, prompts, 9) == [_one_by_one(model, one, 9) for one in prompts]


@pytest.mark.parametrize("model", TOLERANCE, indirect=True)
def test_greedy_continuations_are_what_generate_says(model):
    model.generation_config.eos_token_id = None  # or generate stops there
    source = random.Random(2)
    prompts = [_ids(count, source) for count in (2, 7, 12)]
    for prompt, found in zip(prompts, continue_greedily(model, prompts, 10), strict=True):
        ids = torch.tensor([prompt])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=10,
            pad_token_id=0,
        )
        assert found == tuple(said[0, len(prompt) :].tolist())


def test_exact_is_what_greedy_decoding_says(model):
    source = random.Random(3)
    prompts = [_ids(count, source) for count in (4, 8, 2)]
    said = continue_greedily(model, prompts, 4)
    wrong = [(*ids[:-1], (ids[-1] + 1) % 64) for ids in said]
    assert all(one.exact for one in score_answers(model, list(zip(prompts, said, strict=True))))
    assert not any(
        one.exact for one in score_answers(model, list(zip(prompts, wrong, strict=True)))
    )


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_a_score_does_not_depend_on_what_else_is_asked(model, request):
    close = {"rtol": 0, "atol": FAMILIES[request.node.callspec.params["model"]]}
    pairs = _ragged_pairs()
    alone = [score_answers(model, [pair])[0] for pair in pairs]
    shuffled = random.Random(4).sample(range(len(pairs)), len(pairs))
    together = score_answers(model, [pairs[place] for place in shuffled])
    for place, found in zip(shuffled, together, strict=True):
        torch.testing.assert_close(found.log_probs, alone[place].log_probs, **close)
        assert found.top.tolist() == alone[place].top.tolist()


def test_scores_come_back_in_the_order_of_the_pairs_however_often_one_is_asked(model):
    pairs = _ragged_pairs()
    again = [*pairs[::-1], *pairs, pairs[0]]
    once = dict(zip(pairs, score_answers(model, pairs), strict=True))
    for pair, found in zip(again, score_answers(model, again), strict=True):
        torch.testing.assert_close(found.log_probs, once[pair].log_probs, rtol=0, atol=1e-10)


def test_more_prompts_than_one_batch_holds_are_all_scored(model):
    source = random.Random(5)
    pairs = [(_ids(1 + n % 3, source), _ids(1 + n % 2, source)) for n in range(150)]
    for pair, found in zip(pairs, score_answers(model, pairs), strict=True):
        expected = _in_one_forward(model, *pair)[torch.arange(len(pair[1])), list(pair[1])]
        torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=1e-10)


def test_nothing_asked_is_nothing_answered(model):
    assert score_answers(model, []) == []
    assert continue_greedily(model, [], 3) == []
    assert continue_greedily(model, [(3, 4)], 0) == [()]
    assert continue_sampling(model, [(3, 4)], 0, top=5, seed=0) == [()]


@pytest.mark.parametrize("pair", [((), (3,)), ((3,), ()), ((), ())])
def test_a_pair_without_a_token_is_refused_rather_than_scored_at_some_other_place(model, pair):
    with pytest.raises(ValueError, match="holds no token"):
        score_answers(model, [((3, 4, 5), (6,)), pair])


def test_the_top_token_is_decodings_even_where_rounded_probabilities_tie(tiny):
    model = tiny("llama", initializer_range=0.4)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-9)  # in float32 every log-probability is -log 64
    source = random.Random(6)
    pairs = [(_ids(5, source), _ids(2, source)) for _ in range(8)]
    for (prompt, _), found in zip(pairs, score_answers(model, pairs), strict=True):
        assert found.top[0] == continue_greedily(model, [prompt], 1)[0][0]


def test_a_bfloat16_model_is_scored_in_float32(tiny):
    model = tiny("llama", torch.bfloat16, initializer_range=0.4)
    found = score_answers(model, [((3, 4, 5), (6, 7))])[0]
    assert found.log_probs.dtype == torch.float32
    expected = _in_one_forward(model, (3, 4, 5), (6, 7))[[0, 1], [6, 7]]
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=0.05)


def test_scoring_leaves_the_model_without_gradients_and_the_random_state_alone(model):
    model.requires_grad_(True)
    before = torch.get_rng_state()
    found = score_answers(model, _ragged_pairs(), distributions=True)
    continue_sampling(model, [(3, 4)], 5, top=5, seed=0)
    assert not any(one.log_probs.requires_grad or one.distribution.requires_grad for one in found)
    assert torch.equal(torch.get_rng_state(), before)


# Sampling.


@torch.no_grad()
def _sampled_by_hand(model, prompt, tokens, top, seed):
    luck = torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    said = list(prompt)
    for number in luck.tolist():
        logits = model(input_ids=torch.tensor([said])).logits[0, -1]
        best = sorted(range(len(logits)), key=lambda one: -logits[one].item())[:top]
        weights = [logits[one].exp().item() for one in best]
        place, reached = 0, weights[0] / sum(weights)
        while number >= reached:
            place += 1
            reached += weights[place] / sum(weights)
        said.append(best[place])
    return tuple(said[len(prompt) :])


@pytest.mark.parametrize("model", TOLERANCE, indirect=True)
def test_sampling_draws_from_the_likeliest_as_done_by_hand(model):
    source = random.Random(7)
    prompts = [_ids(count, source) for count in (2, 6, 6, 11)]
    found = continue_sampling(model, prompts, 8, top=5, seed=3)
    assert found == [_sampled_by_hand(model, one, 8, 5, 3) for one in prompts]


def test_sampling_from_the_one_likeliest_is_greedy(model):
    prompts = [(3, 4, 5), (6,)]
    sampled = continue_sampling(model, prompts, 6, top=1, seed=0)
    assert sampled == continue_greedily(model, prompts, 6)


def test_another_seed_samples_another_text(model):
    texts = {continue_sampling(model, [(3, 4)], 12, top=5, seed=seed)[0] for seed in range(4)}
    assert len(texts) == 4


def test_sampling_from_more_tokens_than_there_are_takes_all(model):
    found = continue_sampling(model, [(3, 4)], 3, top=1000, seed=0)
    assert found == [_sampled_by_hand(model, (3, 4), 3, 64, 0)]


# How much work it is.


@pytest.fixture
def work(model):
    """Return what the model was made to do: tokens read per forward, rows × positions given logits."""
    reads, heads = [], []
    model.register_forward_pre_hook(
        lambda _, __, given: reads.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    model.lm_head.register_forward_hook(lambda _, __, out: heads.append(tuple(out.shape[:2])))
    return reads, heads


def test_answers_of_one_token_cost_one_forward_however_many_they_are(model, work):
    score_answers(model, [((3, 4, 5), (6,)), ((3, 4, 5), (7,)), ((3, 4, 6), (8,))])
    assert work == ([(2, 3)], [(2, 1)])


def test_a_prompt_with_several_answers_is_read_once(model, work):
    prompt = tuple(range(2, 22))
    score_answers(model, [(prompt, (3, 4, 5)), (prompt, (6,)), (prompt, (7, 8)), (prompt, (9,))])
    assert work == ([(1, 20), (2, 2)], [(1, 1), (2, 2)])


def test_the_order_of_aliases_costs_no_forward(model, work):
    one, other = (3, 4, 5), (3, 4, 6)
    score_answers(model, [(one, (6,)), (one, (7, 8)), (other, (7, 8)), (other, (6,))])
    assert work[0] == [(2, 3), (2, 1)]


def test_a_continuation_reads_no_token_that_nobody_follows(model, work):
    continue_greedily(model, [(3, 4, 5), (4, 5, 6)], 4)
    assert work == ([(2, 3), (2, 1), (2, 1), (2, 1)], [(2, 1)] * 4)


def test_prompts_of_like_length_share_a_forward(model, work):
    score_answers(model, [(tuple(range(2, 2 + count)), (3,)) for count in range(4, 12)])
    assert len(work[0]) == 1


def test_a_prompt_with_many_aliases_does_not_make_many_others_wait_for_it(model, work):
    plain = [(3, 4, ending) for ending in range(2, 62)] + [(4, 4, n) for n in range(2, 42)]
    aliases = [((4, 5, 6), (7, first)) for first in range(8, 13)]
    score_answers(model, [*((prompt, (7, 8)) for prompt in plain), *aliases])
    assert work[0] == [(64, 3), (64, 1), (37, 3), (36 + 5, 1)]


# Beginnings that many prompts share.


def _alike_pairs(count):
    """Return prompts of several lengths, many of which begin like others, and answers to each."""
    source = random.Random(8)
    stems = [_ids(length, source) for length in (2, 5, 5, 9)]
    prompts = [(*source.choice(stems), *_ids(1 + n % 4, source)) for n in range(count)]
    prompts += [_ids(4, source) for _ in range(5)]  # like no other
    return [(prompt, _ids(1 + n % 3, source)) for n, prompt in enumerate(prompts)]


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_prompts_that_share_a_beginning_are_scored_as_in_a_plain_forward(model, request):
    close = {"rtol": 0, "atol": FAMILIES[request.node.callspec.params["model"]]}
    pairs = _alike_pairs(90)
    found = score_answers(model, pairs, share=True, distributions=True)
    for (prompt, answer), one in zip(pairs, found, strict=True):
        expected = _in_one_forward(model, prompt, answer)
        torch.testing.assert_close(one.distribution.double(), expected, **close)
        own = expected[torch.arange(len(answer)), list(answer)]
        torch.testing.assert_close(one.log_probs.double(), own, **close)
        assert one.top.tolist() == expected.argmax(-1).tolist()


def test_a_beginning_that_many_share_is_read_once(model, work):
    prompts = [(*range(10, 20), n, n % 7) for n in range(30, 60)]
    prompts += [(*range(20, 35), n) for n in range(2, 42)]
    score_answers(model, [(prompt, (3,)) for prompt in prompts], share=True)
    assert sum(rows * tokens for rows, tokens in work[0]) < 2 * 15 + 30 * 2 + 40 + 16


def test_few_prompts_are_read_whole(model, work):
    prompts = [(*range(10, 20), n) for n in range(30, 60)]
    score_answers(model, [(prompt, (3,)) for prompt in prompts], share=True)
    assert work[0] == [(30, 11)]


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_a_prompt_up_to_the_end_of_the_context_is_scored_beside_a_longer_answer(model):
    source = random.Random(9)
    pairs = [(_ids(60, source), _ids(3, source)), (_ids(50, source), _ids(14, source))]
    for pair, found in zip(pairs, score_answers(model, pairs), strict=True):
        expected = _in_one_forward(model, *pair)[torch.arange(len(pair[1])), list(pair[1])]
        torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=1e-10)
