"""Irrelevant texts: where they come from, and which are left out."""

import pytest
import torch

from kedit_core import EditRequest, TensorCache, Weights
from kedit_core.errors import KeditError
from kedit_wise.config import Routes
from kedit_wise.irrelevant import irrelevant_texts
from kedit_wise.reading import read_by


@pytest.fixture
def read(model, tokenizer, tmp_path):
    """Return what reads irrelevant texts with a cache of its own: ``read(seed, count=…)``."""

    def texts(seed=0, folder="cache", **settings):
        weights, cache = Weights(model), TensorCache(tmp_path / folder)
        down = weights.layout.down_of(0)
        return irrelevant_texts(model, tokenizer, down, Routes(**settings), seed, weights, cache)

    return texts


def test_the_model_writes_them_alike_with_a_seed_and_otherwise_with_another(read):
    one, again, other = read(count=5), read(folder="new", count=5), read(seed=1, count=5)
    assert one.words == again.words
    assert torch.equal(one.read.inputs, again.read.inputs)
    assert len(set(one.words)) > 1
    assert one.words != other.words


def test_those_of_a_file_are_read_as_prompts_are(read, model, tokenizer, tmp_path):
    path = tmp_path / "texts.txt"
    lines = "We sail at dawn.", "The harvest was late that year."
    path.write_text("\n\n".join(lines))
    found = read(texts=str(path), tokens=10)
    ids = [tuple(tokenizer(line)["input_ids"][:10]) for line in lines]
    assert found.words == tuple(tokenizer.decode(one) for one in ids)
    alone = [read_by(model, Weights(model).layout.down_of(0), [one]) for one in ids]
    for place, one in enumerate(alone):
        torch.testing.assert_close(found.read.inputs[place], one.inputs[0])


def test_a_text_that_names_a_subject_of_the_shard_is_left_out(read, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Norway is cold.\nWe sail at dawn.\nIn Norway they say so.\n")
    found = read(texts=str(path), tokens=30)
    edits = [EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")]
    assert found.apart_from(edits).tolist() == [1]
    assert found.apart_from([]).tolist() == [0, 1, 2]


def test_a_file_that_is_missing_or_empty_is_refused(read, tmp_path):
    with pytest.raises(KeditError, match="cannot be read"):
        read(texts=str(tmp_path / "missing.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(KeditError, match="holds no irrelevant text"):
        read(texts=str(tmp_path / "empty.txt"))


def test_prompts_of_many_lengths_are_read_as_each_is_alone(model):
    down = Weights(model).layout.down_of(1)
    prompts = [tuple(range(3, 3 + length)) for length in (5, 1, 9, 5, 2)]
    together = read_by(model, down, prompts)
    assert together.real.sum(1).tolist() == [5, 1, 9, 5, 2]
    for place, prompt in enumerate(prompts):
        alone = read_by(model, down, [prompt])
        torch.testing.assert_close(together.inputs[place, : len(prompt)], alone.inputs[0])
