"""The models of the contract know their facts, are kept, and are trained anew when damaged."""

import re
from pathlib import Path

import pytest
import torch

import kedit_core
from kedit_core import Editor
from kedit_core.digests import state_digest
from kedit_core.errors import ModelError
from kedit_core.testing import (
    FAMILIES,
    byte_level_tokenizer,
    edit_of,
    facts,
    neighbours,
    tiny_model,
    trained_model,
)


@pytest.fixture
def kept(request):
    """Return the folder in which the contract's own tests keep the trained models."""
    return request.config.cache.mkdir("kedit")


def test_there_are_forty_facts_of_four_relations_and_each_has_nine_neighbours():
    assert len(facts()) == 40
    assert len({fact.relation for fact in facts()}) == 4
    assert len({prompt for fact in facts() for prompt in fact.prompts}) == 120
    assert {len(neighbours(fact)) for fact in facts()} == {9}


@pytest.mark.parametrize("fact", facts()[::9], ids=lambda fact: fact.subject)
def test_an_edit_of_a_fact_asks_for_the_answer_of_another_one_of_its_relation(fact):
    request = edit_of(fact)
    assert request.prompt == fact.prompts[0]
    assert request.target_true == fact.answer != request.target_new
    assert request.target_new in {other.answer for other in neighbours(fact)}
    assert request.paraphrases == fact.prompts[1:]
    assert {probe.prompt for probe in request.locality} == {o.prompts[0] for o in neighbours(fact)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_answers_every_wording_of_every_fact(family, kept):
    model, tokenizer = trained_model(family, cache_folder=kept)
    prompts = [prompt for fact in facts() for prompt in fact.prompts]
    said = Editor(model, tokenizer).complete(prompts, 3)
    answers = [fact.answer for fact in facts() for _ in fact.prompts]
    assert [text.strip().partition(".")[0] for text in said] == answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_trained_model_comes_in_the_dtype_that_is_asked_for_ready_to_be_read(dtype, kept):
    model, _ = trained_model("gpt2", dtype, kept)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_every_call_gives_a_model_of_its_own(kept):
    (one, _), (other, _) = (trained_model("llama", cache_folder=kept) for _ in range(2))
    next(one.parameters()).data.zero_()
    assert state_digest(other) == state_digest(trained_model("llama", cache_folder=kept)[0])


def test_a_damaged_file_is_trained_anew_to_the_same_bits_and_no_chance_is_used_up(kept, tmp_path):
    whole = state_digest(trained_model("llama", cache_folder=kept)[0])
    damaged = {}
    for file in kept.glob("contract-models/*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        copy = tmp_path / file.relative_to(kept)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)
        damaged[copy] = bytes(content)
    chance = torch.random.get_rng_state()
    assert state_digest(trained_model("llama", cache_folder=tmp_path)[0]) == whole
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert sum(file.read_bytes() != content for file, content in damaged.items()) == 1


def test_another_family_is_refused(kept):
    with pytest.raises(ModelError, match="gpt2 and llama"):
        trained_model("bert", cache_folder=kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_is_seeded_and_leaves_the_callers_chance_alone(family):
    chance = torch.random.get_rng_state()
    one, other = tiny_model(family), tiny_model(family)
    assert state_digest(one) == state_digest(other) != state_digest(tiny_model(family, seed=1))
    assert torch.equal(torch.random.get_rng_state(), chance)


@pytest.mark.parametrize("bos", [False, True])
def test_the_byte_level_tokenizer_reads_any_text_back(bos):
    tokenizer = byte_level_tokenizer(bos=bos)
    text = "Zoë sees 北京 and 🦊."
    ids = tokenizer(text)["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == bos
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_core_itself_needs_no_pytest():
    core = Path(kedit_core.__file__).parent
    imports = re.compile(r"^\s*(from|import) (pytest|kedit_core\.testing)\b", flags=re.MULTILINE)
    asking = {
        path.relative_to(core).parts[0]
        for path in core.rglob("*.py")
        if imports.search(path.read_text(encoding="utf-8"))
    }
    assert asking <= {"testing", "template"}
    assert "testing" in asking
