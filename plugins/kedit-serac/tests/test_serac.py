"""SERAC in force: edits come and go without a trace, and what is answered is followed by the model."""

import pytest
import torch

from kedit_core import Editor
from kedit_core.config import load_config
from kedit_core.errors import KeditError
from kedit_core.testing import trained_model
from kedit_core.testing.facts import facts
from kedit_core.testing.training import FAMILIES
from kedit_core.tokens import encode
from kedit_memory.members import merge
from kedit_serac.config import SeracConfig

TOKENS = 8


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def editor(family, models, checkpoints):
    model, tokenizer = trained_model(family, cache_folder=models)
    return Editor(model, tokenizer, "serac", {"checkpoint": str(checkpoints)})


@pytest.fixture
def outside(editor, edited):
    """Return four prompts that the classifier leaves to the model; so small a one does not know all."""
    editor.edit(edited)
    judged = {edit.prompt for edit in edited}
    asked = [fact.prompts[0] for fact in facts() if fact.prompts[0] not in judged]
    met = editor.scope(asked).requests
    editor.undo()
    found = [one for one, request in zip(asked, met, strict=True) if request is None]
    assert len(found) >= len(asked) * 3 // 4
    return found[-4:]


@pytest.fixture
def prompts(edited, outside):
    """Return prompts in scope and out of it, in turns."""
    return [
        one for pair in zip((edit.prompt for edit in edited), outside, strict=False) for one in pair
    ]


def ids_of(editor, prompt):
    return torch.tensor([encode(editor.tokenizer, [prompt])[0].ids])


def generated(editor, prompt):
    said = editor.model.generate(
        ids_of(editor, prompt), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
    )
    return said[0, -TOKENS:].tolist()


@torch.no_grad()
def logits(editor, prompts):
    return [editor.model(input_ids=ids_of(editor, one)).logits[0] for one in prompts]


def test_an_edit_that_is_removed_was_never_there(editor, edited):
    editor.edit(edited[:4])
    editor.remove(edited[1].id)
    (removed,) = editor.deltas
    editor.undo()
    editor.edit([edited[0], edited[2], edited[3]])
    (never,) = editor.deltas
    assert removed.id == never.id


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf")])
def test_a_threshold_is_a_finite_number(threshold):
    with pytest.raises(KeditError, match="finite"):
        load_config(SeracConfig, {"threshold": threshold})


def test_edits_meet_their_own_prompts_under_a_threshold_that_is_set_later(editor, edited):
    some, more = edited[:2], edited[2:4]
    strict = {**editor.edit(some).provenance.config, "threshold": 2.5}
    editor.edit(more, config=strict)
    (later,) = editor.deltas
    assert editor.scope([one.prompt for one in edited[:4]]).requests == tuple(
        one.id for one in edited[:4]
    )
    editor.undo()
    editor.undo()
    editor.edit(edited[:4], config=strict)
    assert editor.deltas[0].id == later.id


def test_edits_made_one_by_one_are_the_memory_of_all_at_once(editor, edited):
    for one in edited[:3]:
        editor.edit(one)
    (one_by_one,) = editor.deltas
    for _ in range(3):
        editor.undo()
    editor.edit(edited[:3])
    assert editor.deltas[0].id == one_by_one.id


def test_merged_memories_answer_what_both_do(editor, edited):
    first = editor.edit(edited[0])
    editor.undo()
    second = editor.edit(edited[1])
    editor.undo()
    assert merge([first, second]).id == editor.edit(edited[:2]).id


def test_a_delta_needs_no_checkpoint_any_more(editor, edited, family, models, tmp_path):
    editor.edit(edited[:2])
    path = tmp_path / "memory.safetensors"
    editor.save(path)
    model, tokenizer = trained_model(family, cache_folder=models)
    fresh = Editor(model, tokenizer, "serac")
    fresh.load(path)
    asked = [one.prompt for one in edited[:3]]
    for one, other in zip(logits(editor, asked), logits(fresh, asked), strict=True):
        assert torch.equal(one, other)
    fresh.edit(edited[2])
    assert fresh.scope(asked).requests == tuple(one.id for one in edited[:3])


def test_labels_are_scored_on_what_is_answered(editor, edited):
    (prompt,) = encode(editor.tokenizer, [edited[0].prompt])
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        before = editor.model(input_ids=ids, labels=ids).loss
        editor.edit(edited[0])
        said = editor.model(input_ids=ids, labels=ids)
    wanted = torch.nn.functional.cross_entropy(said.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(said.loss, wanted)
    assert said.loss != before


def test_once_an_answer_is_said_the_model_goes_on_from_it(editor, edited):
    prompt, target = edited[0].prompt, f" {edited[0].target_new}"
    editor.edit(edited[0])
    said = generated(editor, prompt)
    answer = editor.tokenizer(target, add_special_tokens=False)["input_ids"]
    if said[: len(answer)] != answer or len(answer) >= TOKENS:
        pytest.skip(f"this small model says {editor.tokenizer.decode(said)!r}")
    editor.undo()
    alone = generated(editor, prompt + target)
    assert said[len(answer) :] == alone[: TOKENS - len(answer)]


def test_without_a_checkpoint_it_says_which_command_makes_one(family, models, edited, tmp_path):
    model, tokenizer = trained_model(family, cache_folder=models)
    editor = Editor(model, tokenizer)
    with pytest.raises(KeditError, match=r"kedit serac train PLAN\.toml"):
        editor.edit(edited[0], method="serac")
    with pytest.raises(KeditError, match="there is no checkpoint"):
        editor.edit(edited[0], method="serac", config={"checkpoint": str(tmp_path)})


def test_a_checkpoint_of_another_model_is_refused(family, models, checkpoints, edited):
    other = next(one for one in FAMILIES if one != family)
    model, tokenizer = trained_model(family, cache_folder=models)
    editor = Editor(model, tokenizer, "serac", {"checkpoint": str(checkpoints / other)})
    with pytest.raises(KeditError, match="was trained for another model"):
        editor.edit(edited[0])


def test_the_log_says_what_was_decided_on_each_prompt(editor, edited, prompts, caplog):
    editor.edit(edited)
    logits(editor, prompts[:4])
    assert not caplog.records
    with caplog.at_level("DEBUG", logger="kedit_memory"):
        logits(editor, prompts[:4])
    said = [record.getMessage() for record in caplog.records]
    assert [one.partition(", p ")[0] for one in said] == [
        "row 0: entry 0",
        "row 0: outside",
        "row 0: entry 1",
        "row 0: outside",
    ]
    assert [float(one.partition(", p ")[2]) > 0.5 for one in said] == [True, False, True, False]
