"""Many restored edits judged in one forward give what each edit gives when it is alone in the model."""

import pytest
import torch
from attrs import evolve
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from kedit_core import Delta, Dense, EditRequest, LowRank, Provenance, Weights, layout_of
from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_core.scoring import score_answers
from kedit_rome.together import Asked, score_together

VOCABULARY, EDITS = 61, 7


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )


def opt():
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )


# Conv1D, Linear, and a family whose rows and tokens are one dimension in the MLP.
FAMILIES = [gpt2, llama, opt]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param().double().eval()


def an_edit(model, seed, layer=0, rank=1):
    """Return a delta as ROME makes them: strong enough to change what the model says."""
    down = layout_of(model).down_of(layer)
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(down.out_features, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, down.in_features, generator=generator, dtype=torch.float64)
    dtype = torch.promote_types(model.dtype, torch.float32)
    base = {down.weight: Weights(model).base_digests(down.weight)}
    return Delta(
        method="rome",
        requests=(EditRequest(prompt=f"fact {seed}", target_new="x"),),
        parts=(LowRank(weight=down.weight, left=(20 * left).to(dtype), right=right.to(dtype)),),
        provenance=Provenance(base=base),
    )


def the_edits(model):
    return [an_edit(model, seed) for seed in range(EDITS)]


def the_questions():
    """Return prompts and answers of many lengths, all edits mixed, and one prompt asked of all edits."""
    generator = torch.Generator().manual_seed(1)

    def ids(count):
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    own = [
        Asked(delta=place % EDITS, prompt=ids(1 + place % 9), answer=ids(1 + place % 4))
        for place in range(40)
    ]
    return [*own, *(Asked(delta=edit, prompt=(3, 4), answer=(5,)) for edit in range(EDITS))]


def one_by_one(model, edits, questions):
    """Apply each edit alone, ask its questions, take it out again."""
    weights = Weights(model)
    found = {}
    for place, edit in enumerate(edits):
        own = [question for question in questions if question.delta == place]
        pairs = [(question.prompt, question.answer) for question in own]
        with weights.add(edit):
            found |= zip(own, score_answers(model, pairs, distributions=True), strict=True)
    return [found[question] for question in questions]


def state(model):
    """Return everything of a model that a judgement might leave changed."""
    return (
        {name: digest(value) for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
    )


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.distribution, other.distribution, rtol=0, atol=tolerance)
        assert one.top.tolist() == other.top.tolist()
        assert one.hits.tolist() == other.hits.tolist()
        assert one.exact == other.exact


def test_answers_are_those_of_each_edit_alone_in_the_model(model):
    edits, questions = the_edits(model), the_questions()
    found = score_together(model, edits, questions, distributions=True)
    assert_same(found, one_by_one(model, edits, questions), tolerance=1e-10)
    shared = {tuple(one.top.tolist()) for one in found[-EDITS:]}
    assert len(shared) > 1, "the edits change nothing, so nothing was compared"


def test_in_float32_the_model_says_the_same_tokens(model):
    model = model.float()
    edits, questions = the_edits(model), the_questions()
    found = score_together(model, edits, questions)
    expected = one_by_one(model, edits, questions)
    assert [one.top.tolist() for one in found] == [one.top.tolist() for one in expected]
    assert all(one.distribution is None for one in found)


def test_in_bfloat16_answers_are_within_the_rounding_of_a_written_weight(model):
    model = model.bfloat16()
    edits = [an_edit(model, seed) for seed in range(EDITS)]
    questions = the_questions()
    expected = one_by_one(model, edits, questions)
    for one, other in zip(score_together(model, edits, questions), expected, strict=True):
        assert one.log_probs.dtype == torch.float32
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("tokens", [1, 13, 10_000])
def test_the_size_of_a_batch_changes_no_answer(model, tokens):
    edits, questions = the_edits(model), the_questions()
    expected = score_together(model, edits, questions, distributions=True)
    found = score_together(model, edits, questions, distributions=True, tokens=tokens)
    assert_same(found, expected, tolerance=1e-12)


def test_answers_come_in_the_order_of_the_questions_also_when_some_are_equal(model):
    edits, questions = the_edits(model), the_questions()
    asked = [*reversed(questions), *questions]
    found = score_together(model, edits, asked, distributions=True)
    assert_same(found[: len(questions)], found[len(questions) :][::-1], tolerance=1e-12)


def test_an_edit_in_force_in_another_layer_stays_in_force(model):
    edits, questions = the_edits(model), the_questions()
    alone = score_together(model, edits, questions, distributions=True)
    with Weights(model).add(an_edit(model, 99, layer=1)):
        found = score_together(model, edits, questions, distributions=True)
        assert_same(found, one_by_one(model, edits, questions), tolerance=1e-10)
    assert any(a.top.tolist() != b.top.tolist() for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, training):
    model.train(training)
    before = state(model)
    score_together(model, the_edits(model), the_questions())
    assert state(model) == before


def test_the_model_is_left_as_it_was_when_a_forward_fails(model):
    before = state(model)
    with pytest.raises(IndexError):
        score_together(model, the_edits(model), [Asked(delta=0, prompt=(VOCABULARY,), answer=(1,))])
    assert state(model) == before


def test_a_model_in_training_mode_is_judged_without_dropout():
    torch.manual_seed(0)
    model = gpt2().double().train()
    assert model.config.resid_pdrop > 0
    edits, questions = the_edits(model), the_questions()
    found = score_together(model, edits, questions, distributions=True)
    assert_same(found, one_by_one(model.eval(), edits, questions), tolerance=1e-10)


def test_no_question_has_no_answer(model):
    assert score_together(model, the_edits(model), []) == []
    assert score_together(model, [], []) == []


def two_parts(delta):
    return evolve(delta, parts=delta.parts * 2)


def as_a_matrix(delta):
    (part,) = delta.parts
    return evolve(delta, parts=(Dense(weight=part.weight, update=part.left @ part.right),))


def too_short(delta):
    (part,) = delta.parts
    return evolve(delta, parts=(evolve(part, right=part.right[:, 1:]),))


def of_another_model(delta):
    (part,) = delta.parts
    base = {part.weight: {"float64": "0" * 16, "float32": "0" * 16}}
    return evolve(delta, provenance=Provenance(base=base))


@pytest.mark.parametrize("change", [two_parts, as_a_matrix, too_short, of_another_model])
def test_a_delta_that_cannot_be_judged_beside_others_is_refused(model, change):
    edits = the_edits(model)
    edits[3] = change(edits[3])
    with pytest.raises(DeltaError):
        score_together(model, edits, the_questions())


def test_a_weight_that_is_edited_already_is_refused(model):
    edits, questions = the_edits(model), the_questions()
    with Weights(model).add(edits[0]), pytest.raises(DeltaError, match="another model"):
        score_together(model, edits, questions)


def test_a_delta_of_rank_two_is_refused(model):
    with pytest.raises(DeltaError, match="rank-one"):
        score_together(
            model, [an_edit(model, 0, rank=2)], [Asked(delta=0, prompt=(1,), answer=(2,))]
        )


def test_deltas_of_different_weights_are_refused(model):
    edits = [an_edit(model, 0), an_edit(model, 1, layer=1)]
    with pytest.raises(DeltaError, match="the first one edits"):
        score_together(model, edits, [Asked(delta=0, prompt=(1,), answer=(2,))])


def test_a_delta_of_an_embedding_is_refused():
    model = llama().eval()
    embedding = LowRank(
        weight="model.embed_tokens.weight", left=torch.ones(VOCABULARY, 1), right=torch.ones(1, 16)
    )
    delta = Delta(method="rome", requests=(), parts=(embedding,))
    with pytest.raises(DeltaError, match="no weight of a linear map"):
        score_together(model, [delta], [Asked(delta=0, prompt=(1,), answer=(2,))])


def test_a_question_for_an_edit_that_is_not_there_is_refused(model):
    with pytest.raises(IndexError, match=f"delta {EDITS}"):
        score_together(model, the_edits(model), [Asked(delta=EDITS, prompt=(1,), answer=(2,))])


@pytest.mark.parametrize(
    "wrong", [{"prompt": ()}, {"answer": ()}, {"delta": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_a_question_that_means_nothing_cannot_be_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Asked(**({"delta": 0, "prompt": (1,), "answer": (2,)} | wrong))
