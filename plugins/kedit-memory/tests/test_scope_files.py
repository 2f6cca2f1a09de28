"""Scope classifiers in files: what was written is read, and only for the model that it was made for."""

import pytest
import torch
from attrs import evolve
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kedit_core import Weights
from kedit_core.errors import KeditError
from kedit_core.layout import layout_of
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_memory.pooling import sites_of
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_files import (
    BEST,
    StoredScope,
    differs,
    made_for,
    read_scope,
    scope_for,
    write_scope,
)


@pytest.fixture
def stored(model, tokenizer):
    chance = torch.Generator().manual_seed(0)
    classifier = ScopeClassifier(
        projection=torch.randn(8, 6, generator=chance),
        offset=torch.randn(8, generator=chance),
        leaning=torch.randn(7, generator=chance),
        sites=sites_of(layout_of(model)),
        threshold=0.4,
        temperature=0.05,
    )
    return StoredScope(classifier=classifier, made_for=made_for(Weights(model), tokenizer))


def test_what_is_written_is_read(stored, tmp_path):
    write_scope(stored, tmp_path / BEST)
    for path in (tmp_path / BEST, tmp_path):
        found = read_scope(path)
        assert found == stored
        assert torch.equal(found.classifier.projection, stored.classifier.projection)


def test_of_several_folders_the_one_for_the_model_is_taken(stored, tmp_path):
    other = evolve(stored, made_for={**stored.made_for, "float32": "other", "bfloat16": "other"})
    for name, one in (("a", evolve(other, chat=True)), ("b", stored)):
        (tmp_path / name).mkdir()
        write_scope(one, tmp_path / name / BEST)
    assert scope_for(tmp_path, stored.made_for) == stored


def test_a_classifier_of_another_model_or_tokenizer_is_refused(stored, model, tmp_path):
    write_scope(stored, tmp_path / BEST)
    other = tiny_model("gpt2", dtype=torch.float32, seed=1)
    for base, what in (
        (made_for(Weights(other), byte_level_tokenizer(bos=False)), "model"),
        (made_for(Weights(model), byte_level_tokenizer(bos=True)), "tokenizer"),
    ):
        assert differs(stored.made_for, base) == what
        with pytest.raises(KeditError, match=f"another {what}"):
            scope_for(tmp_path, base)
    nested = tmp_path / "folder" / "own"
    nested.mkdir(parents=True)
    write_scope(stored, nested / BEST)
    with pytest.raises(KeditError, match="none of the 1 scope classifiers"):
        scope_for(nested.parent, made_for(Weights(other), byte_level_tokenizer(bos=False)))


def test_what_is_missing_or_damaged_is_said(stored, tmp_path):
    with pytest.raises(KeditError, match="there is no scope classifier"):
        read_scope(tmp_path / "nothing")
    path = tmp_path / BEST
    write_scope(stored, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(KeditError, match="holds no whole scope classifier"):
        read_scope(path)


def test_a_classifier_from_before_prompts_leaned_is_refused_by_name(stored, tmp_path):
    path = tmp_path / BEST
    write_scope(stored, path)
    tensors = {name: one for name, one in load_file(path).items() if name != "scope.leaning"}
    with safe_open(path, framework="pt") as file:
        save_file(tensors, path, metadata=file.metadata())
    with pytest.raises(KeditError, match=f"{path}: holds a scope classifier of an earlier version"):
        read_scope(path)
