import subprocess
import sys
from importlib.resources import files
from random import Random

import pytest
import torch

from kedit_atlas.measure import OPENINGS, Question, answered, recall
from kedit_atlas.world import load_world
from kedit_core.errors import ModelError
from kedit_core.plugins import Plugins

BIG, ALL = ("gpt2", "llama"), ("gpt2", "llama", "companion")
MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def opened():
    plugins = Plugins.installed()
    return {
        name: plugins.call_all("open_model", source=f"atlas:{name}", dtype=None, device=None)
        for name in ALL
    }


@pytest.fixture(scope="module")
def sample():
    return Random("sample").sample(load_world().facts, 100)


@pytest.mark.parametrize("name", ALL)
def test_no_file_of_a_model_is_larger_than_promised(name):
    folder = files("kedit_atlas").joinpath("models", name)
    assert all(path.stat().st_size <= 20 * MEGABYTE for path in folder.iterdir())


@pytest.mark.parametrize("name", BIG)
def test_a_model_opens_in_float32_and_knows_its_facts(name, opened, sample):
    model, tokenizer = opened[name]
    assert model.dtype == torch.float32
    assert not model.training
    assert recall(model, tokenizer, sample, "trained") >= 0.97
    assert recall(model, tokenizer, sample, "left out") >= 0.95


@pytest.mark.parametrize("name", BIG)
def test_a_model_knows_its_facts_behind_other_text_too(name, opened, sample):
    model, tokenizer = opened[name]
    asked = [
        Question(prompt=f"The list goes on. {fact.openings[0]}", answer=fact.object)
        for fact in sample
    ]
    assert answered(model, tokenizer, asked).float().mean() >= 0.95


def test_recall_is_what_greedy_generation_says(opened, sample):
    model, tokenizer = opened["gpt2"]
    asked = [Question(prompt=OPENINGS["never trained" if i % 2 else "trained"](fact)[0], answer=fact.object)
             for i, fact in enumerate(sample[:20])]  # fmt: skip
    told = []
    for question in asked:
        ids = torch.tensor([tokenizer(question.prompt)["input_ids"]])
        answer = tokenizer(f" {question.answer}", add_special_tokens=False)["input_ids"]
        text = model.generate(ids, max_new_tokens=len(answer), do_sample=False,
                              attention_mask=torch.ones_like(ids))  # fmt: skip
        told.append(text[0, ids.shape[1] :].tolist() == answer)
    assert answered(model, tokenizer, asked).tolist() == told


def test_all_tokenizers_agree_but_for_the_token_that_begins_a_text(opened):
    text = "The capital of France is Paris."
    bare = opened["gpt2"][1](text)["input_ids"]
    assert opened["companion"][1](text)["input_ids"] == bare
    assert opened["llama"][1](text)["input_ids"] == [opened["llama"][1].bos_token_id, *bare]
    assert opened["gpt2"][1].decode(bare) == text


def test_an_unknown_model_is_refused_with_the_names_that_exist():
    with pytest.raises(ModelError, match="atlas:gpt2, atlas:llama, atlas:companion"):
        Plugins.installed().call_all("open_model", source="atlas:bert", dtype=None, device=None)


def test_the_plugin_imports_neither_torch_nor_transformers_before_it_is_asked():
    code = (
        "import sys, kedit_atlas as a; "
        "assert a.open_model('gpt2', None, None) is a.read_requests('x.jsonl') is None; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
