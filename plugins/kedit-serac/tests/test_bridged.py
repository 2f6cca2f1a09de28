"""A counterfactual model with a vocabulary of its own answers in text, and the wrapped model says its words."""

import json

import pytest
import torch
from attrs import evolve
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kedit_core import Editor
from kedit_core.errors import KeditError, ModelError
from kedit_core.testing import byte_level_tokenizer, trained_model
from kedit_core.testing import facts as all_facts
from kedit_core.tokens import encode, encode_target
from kedit_serac.bridged import Language, bridged
from kedit_serac.checkpoints import LAST, read
from kedit_serac.config import ScopeTraining
from kedit_serac.shards import Source
from kedit_serac.training import Training

EDITS = 4
TOKENS = 6


def foreign(family="llama", width=64):
    """Return a random small model and a tokenizer whose vocabulary is none of the base's."""
    tokenizer = byte_level_tokenizer(
        bos=True,
        sentences=("The capital of Egypt is Rome.", "The language of Peru is Dutch."),
        vocabulary=320,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if family == "gpt2":
            shape = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 256}
            return GPT2LMHeadModel(GPT2Config(vocab_size=320, **shape)).eval(), tokenizer
        shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 2, "max_position_embeddings": 256}
        return LlamaForCausalLM(LlamaConfig(vocab_size=320, **shape)).eval(), tokenizer


@pytest.fixture(scope="module")
def facts(edited):
    """Return a few edits, which the counterfactual model here learns by heart: so small a one cannot copy."""
    return [evolve(one, paraphrases=one.paraphrases[:1]) for one in edited[:EDITS]]


@pytest.fixture(scope="module")
def training(models, plans, facts):
    """Return the maker of trainings of a bridged counterfactual model."""

    def make(folder, say=None, language=None, **changes):
        model, tokenizer = trained_model("gpt2", cache_folder=models)
        made = plans(
            folder, **{"steps": 60, "lr": 5e-3, "random_targets": 0.0, "locality": 0.3, **changes}
        )
        return Training(
            model,
            tokenizer,
            evolve(made, validation=0.25, scope=ScopeTraining(width=32, steps=80, lr=3e-3)),
            [Source(name="facts", requests=facts)],
            language=language or bridged(*foreign()),
            say=say,
        )

    return make


@pytest.fixture(scope="module")
def checkpoint(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridged")
    training(folder).run()
    return folder


@pytest.fixture
def editor(models, checkpoint):
    model, tokenizer = trained_model("gpt2", cache_folder=models)
    return Editor(model, tokenizer, "serac", {"checkpoint": str(checkpoint), "threshold": 0.9})


@pytest.fixture
def prompts(editor, facts):
    """Return prompts in scope and out of it, in turns and of unlike lengths."""
    editor.edit(facts)
    known = [
        one.prompts[0] for one in all_facts() if one.prompts[0] not in {f.prompt for f in facts}
    ]
    met = editor.scope(known).requests
    editor.undo()
    outside = [one for one, request in zip(known, met, strict=True) if request is None]
    outside = sorted(outside, key=len)[:: max(1, len(outside) // EDITS)][:EDITS]
    assert len(outside) == EDITS
    return [one for pair in zip((f.prompt for f in facts), outside, strict=True) for one in pair]


def batch_of(editor, prompts, side="left"):
    rows = [encode(editor.tokenizer, [prompt])[0].ids for prompt in prompts]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    both = list(zip(pads, rows, strict=True))
    ids = [[*pad, *row] if side == "left" else [*row, *pad] for pad, row in both]
    marks = [([0] * len(pad), [1] * len(row)) for pad, row in both]
    mask = [[*pad, *row] if side == "left" else [*row, *pad] for pad, row in marks]
    return torch.tensor(ids), torch.tensor(mask)


def generated(editor, prompts, tokens=TOKENS, **how):
    ids, mask = batch_of(editor, prompts)
    how = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, **how}
    said = editor.model.generate(ids, attention_mask=mask, max_new_tokens=tokens, **how)
    return said[:, ids.shape[1] :].tolist()


@torch.no_grad()
def stepwise(editor, prompt, tokens=TOKENS):
    """Return what greedy decoding says when every token is read by a forward of its own."""
    (read,) = encode(editor.tokenizer, [prompt])
    ids, cache, said = torch.tensor([read.ids]), None, []
    for _ in range(tokens):
        out = editor.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        said.append(int(ids))
    return said


def target_of(editor, fact):
    (prompt,) = encode(editor.tokenizer, [fact.prompt])
    return list(encode_target(editor.tokenizer, prompt, fact.joiner + fact.target_new))


def test_edits_are_said_in_tokens_of_the_base_and_judged_by_exact_match(editor, facts):
    before = editor.evaluate(facts, ["reliability.exact"]).means()["reliability.exact"]
    editor.edit(facts)
    right = [
        generated(editor, [one.prompt])[0][: len(target_of(editor, one))] == target_of(editor, one)
        for one in facts
    ]
    assert sum(right) >= EDITS // 2
    after = editor.evaluate(facts, ["reliability.exact"]).means()["reliability.exact"]
    assert after == sum(right) / EDITS > before


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_batch_is_answered_as_its_rows_are_one_by_one(
    editor, facts, prompts, use_cache, beams
):
    how = {"use_cache": use_cache, "num_beams": beams}
    before = generated(editor, prompts, **how)
    editor.edit(facts)
    together = generated(editor, prompts, **how)
    assert together != before
    assert together[1::2] == before[1::2]
    assert together == [generated(editor, [one], **how)[0] for one in prompts]


def test_generating_says_what_forward_passes_say_one_by_one(editor, facts, prompts):
    editor.edit(facts)
    for prompt in prompts:
        assert generated(editor, [prompt])[0] == stepwise(editor, prompt)


@torch.no_grad()
def test_out_of_scope_the_answer_is_the_models_own_bit_for_bit(editor, facts, prompts):
    ids = [torch.tensor([encode(editor.tokenizer, [one])[0].ids]) for one in prompts[1::2]]
    before = [editor.model(input_ids=one).logits for one in ids]
    editor.edit(facts)
    for one, other in zip(ids, before, strict=True):
        assert torch.equal(editor.model(input_ids=one).logits, other)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_on_either_side_change_no_answer(editor, facts, prompts, side):
    editor.edit(facts)
    ids, mask = batch_of(editor, prompts, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    said = editor.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, prompt in enumerate(prompts):
        own = torch.tensor([encode(editor.tokenizer, [prompt])[0].ids])
        alone = editor.model(input_ids=own).logits[0]
        torch.testing.assert_close(said[row][mask[row].bool()], alone, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_next_word_is_nearly_certain_and_all_others_are_alike(editor, facts):
    editor.edit(facts)
    (prompt,) = encode(editor.tokenizer, [facts[1].prompt])
    logits = editor.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1].double()
    chances = logits.softmax(-1).sort(descending=True).values
    assert chances[0] == pytest.approx(1 - 1e-4, abs=1e-6)
    assert chances[1] == pytest.approx(chances[-1]) == pytest.approx(1e-4 / (len(chances) - 1))


@torch.no_grad()
def test_where_something_else_was_said_the_model_goes_on_itself(editor, facts):
    (prompt,) = encode(editor.tokenizer, [facts[1].prompt])
    other = encode_target(editor.tokenizer, prompt, " Berlin, they say")
    ids = torch.tensor([[*prompt.ids, *other]])

    def scored():
        read = editor.model(input_ids=ids[:, : len(prompt.ids)], use_cache=True)
        rest = ids[:, len(prompt.ids) :]
        return editor.model(input_ids=rest, past_key_values=read.past_key_values).logits[0]

    before = scored()
    editor.edit(facts)
    torch.testing.assert_close(scored(), before)


def test_it_may_say_all_that_follows_up_to_the_end_of_text(editor, models, checkpoint, facts):
    editor.edit(facts)
    said = {one.id: generated(editor, [one.prompt])[0] for one in facts}
    right = [
        one
        for one in facts
        if said[one.id][: len(target_of(editor, one))] == target_of(editor, one)
    ]
    assert right
    model, tokenizer = trained_model("gpt2", cache_folder=models)
    settings = {"checkpoint": str(checkpoint), "threshold": 0.9, "hand_back": False}
    other = Editor(model, tokenizer, "serac", settings)
    other.edit(facts)
    stop = tokenizer(".", add_special_tokens=False)["input_ids"]
    for one in right:
        (whole,) = generated(other, [one.prompt])
        answer = target_of(other, one)
        assert whole[: len(answer) + 2] == [*answer, *stop, tokenizer.eos_token_id]


def test_a_delta_needs_neither_checkpoint_nor_the_other_model(editor, models, facts, tmp_path):
    editor.edit(facts)
    path = tmp_path / "memory.safetensors"
    editor.save(path)
    model, tokenizer = trained_model("gpt2", cache_folder=models)
    fresh = Editor(model, tokenizer, "serac")
    fresh.load(path)
    asked = [one.prompt for one in facts]
    assert generated(fresh, asked) == generated(editor, asked)
    fresh.remove(facts[0].id)
    assert fresh.scope(asked).requests[1:] == editor.scope(asked).requests[1:]


def test_training_that_is_interrupted_ends_at_the_same_bits(training, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    short = {"steps": 4, "validate": 2, "batch": 4}
    whole = training(tmp_path / "whole", **short).run()
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "broken", stop, **short).run()
    again = training(tmp_path / "broken", **short).run(resume=True)
    assert isinstance(again.shape, Language)
    assert json.loads(json.dumps(again.shape.as_json())) == again.shape.as_json()
    for name, one in whole.weights.items():
        assert torch.equal(again.weights[name], one), name
    assert (
        read(tmp_path / "broken" / LAST).state.keys()
        == read(tmp_path / "whole" / LAST).state.keys()
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_copy_reads_and_says_what_the_model_does(family):
    model, tokenizer = foreign(family)
    copy = bridged(model, tokenizer)
    text = "Zoë reads: The capital of Egypt is"
    ids = copy.tokenizer(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits
        found = copy.language(input_ids=torch.tensor([ids])).logits
    assert torch.equal(found, wanted)
    assert not copy.train().language.training


def test_a_tokenizer_that_cannot_be_kept_as_data_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="without a fast version"):
        bridged(foreign()[0], Slow())


def test_a_chat_template_is_refused(training, models, checkpoint, facts, tmp_path):
    model, tokenizer = trained_model("gpt2", cache_folder=models)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    editor = Editor(model, tokenizer, "serac", {"checkpoint": str(checkpoint)}, chat=True)
    with pytest.raises(KeditError, match="reads no chat template"):
        editor.edit(facts[0])
