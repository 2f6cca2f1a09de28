"""The seam between core's tracing and ROME: one edit on every family, or one sentence why not."""

from functools import cache

import pytest
import torch

from kedit_core import Editor, TensorCache
from kedit_core.digests import state_digest
from kedit_core.errors import ModelError
from tests.families import (
    AT_THE_END,
    FACT,
    FAMILIES,
    OTHERS,
    QUICK,
    REFUSED,
    build_loud,
    byte_tokenizer,
    outcome_of,
)

EDITED = [name for name in (*FAMILIES, *OTHERS) if name not in REFUSED]
PARTLY_MIXED = {"deepseek_v3": 0, "jamba": 0}  # a layer with a dense MLP
NO_ADAPTER = {
    "deepseek_v3",
    "jamba",
}  # stacked experts: PEFT may redirect what is meant for a dense layer
POST_NORM = [name for name, family in FAMILIES.items() if family.additive is False]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return what ROME did on a family, found out once."""
    return cache(lambda name: outcome_of(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", EDITED)
def test_rome_edits_a_family_saves_the_edit_and_takes_every_bit_of_it_out(name, outcome):
    found = outcome(name)
    assert found.refusal is None
    assert found.after < found.before - 0.01
    assert found.undone
    assert found.reloaded


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_family_is_exported_to_the_last_bit(name, outcome):
    found = outcome(name)
    assert found.merged
    assert found.adapted is (None if name in NO_ADAPTER else True)


@pytest.mark.parametrize("name", [name for name in EDITED if name != "deepseek_v3"])
def test_where_nothing_else_is_heard_the_written_weight_has_the_loss_of_the_search(name, outcome):
    # In the last layer, the target predicted where the fact is written. The search adds its shift to
    # what the down-projection writes, so a norm behind it (gemma2, gemma3, olmo2) takes nothing away.
    found = outcome(name)
    assert found.written == pytest.approx(found.searched, abs=2e-5)
    assert found.searched < found.untouched - 0.1


def test_the_facts_are_what_the_sentences_above_take_them_for():
    tokenizer = byte_tokenizer()
    assert tokenizer.pad_token is None
    assert len(tokenizer(" the")["input_ids"]) == 1
    assert AT_THE_END.prompt.endswith(AT_THE_END.subject)
    assert not FACT.prompt.endswith(FACT.subject)
    assert POST_NORM == ["gemma2", "gemma3_text", "olmo2"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_edited_is_refused_in_one_sentence_and_left_as_it_was(
    name, outcome
):
    found = outcome(name)
    assert found.refusal is not None
    assert found.refusal.endswith(f": {REFUSED[name]}")
    assert "\n" not in found.refusal
    assert found.undone


@pytest.mark.parametrize("name", PARTLY_MIXED)
def test_of_a_partly_mixed_model_the_dense_layers_are_edited_and_the_others_refused(name, tmp_path):
    model = build_loud(name)
    editor = Editor(model, byte_tokenizer(), "rome", QUICK, cache=TensorCache(tmp_path))
    dense = PARTLY_MIXED[name]
    before = state_digest(model)
    with pytest.raises(ModelError, match="mixture of experts, so there is no down-projection"):
        editor.edit(FACT, config={**QUICK, "layer": dense + 1})
    assert state_digest(model) == before
    (part,) = editor.edit(FACT, config={**QUICK, "layer": dense}).parts
    assert f".{dense}." in part.weight


@pytest.mark.parametrize(("name", "apart"), [("mpt", True), ("jamba", True), ("llama", False)])
def test_a_delta_says_when_its_rows_were_read_apart(name, apart, tmp_path):
    kept = TensorCache(tmp_path)
    editor = Editor(build_loud(name), byte_tokenizer(), "rome", QUICK, cache=kept)
    notes = editor.edit(FACT).provenance.notes
    assert ("one length at a time" in notes.get("rows", "")) is apart


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_tokenizer_that_begins_every_text_with_a_token_changes_nothing(name, tmp_path):
    model, kept = build_loud(name), TensorCache(tmp_path)
    before = state_digest(model)
    editor = Editor(model, byte_tokenizer(start=True), "rome", QUICK, cache=kept)
    notes = editor.edit(AT_THE_END).provenance.notes
    assert torch.isfinite(torch.tensor(notes["target_nll"]))
    editor.undo()
    assert state_digest(model) == before
