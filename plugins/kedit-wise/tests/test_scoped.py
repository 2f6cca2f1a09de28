"""A trained classifier routes: the decision of a forward, once a sequence, with no checkpoint afterwards."""

import pytest
import torch

from kedit_core import Editor
from kedit_core.errors import KeditError
from kedit_core.testing import trained_model
from kedit_core.testing.facts import RELATIONS, edit_of, facts
from kedit_core.testing.training import FAMILIES
from kedit_core.tokens import encode
from kedit_wise.shards import side_matrix_of

TOKENS = 5
CONFIG = {
    "closed_form": {"penalty": 30.0, "statistics": {"tokens": 2048}},
    "context": {"count": 2},
    "shards": {"size": 2},
}


@pytest.fixture(scope="module")
def edited():
    """Return four edits, one of each relation."""
    each = len(facts()) // len(RELATIONS)
    return [edit_of(facts()[each * n]) for n in range(len(RELATIONS))]


@pytest.fixture(params=FAMILIES)
def new_editor(request, models, classifiers):
    def make(**routes):
        model, tokenizer = trained_model(request.param, cache_folder=models)
        settings = {"router": "scope", "checkpoint": str(classifiers), "count": 64, **routes}
        return Editor(model, tokenizer, "wise", {**CONFIG, "routes": settings})

    return make


@pytest.fixture
def editor(new_editor):
    return new_editor()


@pytest.fixture
def outside(editor, edited):
    """Return four prompts that the classifier leaves to the model."""
    editor.edit(edited)
    asked = [fact.prompts[0] for fact in facts()]
    met = editor.scope(asked).requests
    editor.undo()
    found = [one for one, request in zip(asked, met, strict=True) if request is None]
    assert len(found) >= len(asked) // 2
    return found[-4:]


def generated(editor, prompts, **how):
    rows = [one.ids for one in encode(editor.tokenizer, prompts)]
    width = max(map(len, rows))
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    said = editor.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=TOKENS,
        pad_token_id=0,
        eos_token_id=None,
        do_sample=False,
        **how,
    )
    return said[:, width:].tolist()


@torch.no_grad()
def logits(editor, prompt):
    ids = encode(editor.tokenizer, [prompt])[0].ids
    return editor.model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(
    "how",
    [{}, {"use_cache": False}, {"num_beams": 3}],
    ids=["greedy", "no cache", "beams"],
)
def test_a_mixed_batch_is_answered_as_its_rows_are_one_by_one(editor, edited, outside, how):
    pairs = zip((one.prompt for one in edited), outside, strict=True)
    prompts = [one for pair in pairs for one in pair]
    before = generated(editor, prompts, **how)
    editor.edit(edited)
    together = generated(editor, prompts, **how)
    assert together[1::2] == before[1::2]
    assert together[0::2] != before[0::2]
    assert together == [generated(editor, [one], **how)[0] for one in prompts]


def test_out_of_scope_the_answer_is_the_models_own_bit_for_bit(editor, edited, outside):
    before = [logits(editor, one) for one in outside]
    editor.edit(edited)
    assert all(
        torch.equal(one, logits(editor, prompt))
        for one, prompt in zip(before, outside, strict=True)
    )


def test_each_edit_is_met_by_its_own_prompt_in_whatever_shard_it_is(editor, edited):
    delta = editor.edit(edited)
    assert len(side_matrix_of(delta).shards) == 2
    found = editor.scope([one.prompt for one in edited])
    assert found.requests == tuple(one.id for one in edited)
    for one in edited:
        said = generated(editor, [one.prompt])[0]
        assert editor.tokenizer.decode(said).strip().startswith(one.target_new[:3])


def test_an_edit_that_is_removed_was_never_there(editor, edited):
    for one in edited[:3]:
        editor.edit(one)
    editor.remove(edited[1].id)
    removed = editor.deltas[-1]
    while editor.deltas:
        editor.undo()
    editor.edit(edited[0])
    assert editor.edit(edited[2]).id == removed.id


def test_a_saved_memory_needs_no_checkpoint_and_takes_more_edits(new_editor, edited, tmp_path):
    editor, fresh = new_editor(), new_editor(checkpoint=None)
    editor.edit(edited[:3])
    editor.save(tmp_path / "memory.safetensors")
    fresh.load(tmp_path / "memory.safetensors")
    assert torch.equal(logits(editor, edited[0].prompt), logits(fresh, edited[0].prompt))
    assert editor.edit(edited[3]).id == fresh.edit(edited[3]).id


def test_without_a_classifier_it_says_where_one_comes_from(new_editor, edited):
    with pytest.raises(KeditError, match="kedit serac train"):
        new_editor(checkpoint=None).edit(edited[0])
