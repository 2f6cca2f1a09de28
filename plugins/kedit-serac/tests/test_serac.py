"""SERAC in force: each sequence is answered as it is alone, and edits come out without a trace."""

import pytest
import torch

from kedit_core import Editor
from kedit_core.errors import KeditError
from kedit_core.testing import trained_model
from kedit_core.testing.facts import facts
from kedit_core.testing.training import FAMILIES
from kedit_core.tokens import encode
from kedit_memory.members import merge

TOKENS = 8
WAYS = {
    "greedy": {"do_sample": False},
    "beam 4": {"do_sample": False, "num_beams": 4},
    "sampling": {"do_sample": True, "top_k": 1},
}


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


def rows_of(editor, prompts, side):
    rows = [encode(editor.tokenizer, [prompt])[0].ids for prompt in prompts]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    both = list(zip(pads, rows, strict=True))
    ids = [[*pad, *row] if side == "left" else [*row, *pad] for pad, row in both]
    one = [[0] * len(pad) + [1] * len(row) for pad, row in both]
    mask = one if side == "left" else [row[::-1] for row in one]
    return torch.tensor(ids), torch.tensor(mask)


def generated(editor, prompts, **how):
    ids, mask = rows_of(editor, prompts, "left")
    said = editor.model.generate(
        ids, attention_mask=mask, max_new_tokens=TOKENS, pad_token_id=0, eos_token_id=None, **how
    )
    return said[:, ids.shape[1] :].tolist()


@torch.no_grad()
def logits(editor, prompts):
    return [
        editor.model(input_ids=torch.tensor([encode(editor.tokenizer, [one])[0].ids])).logits[0]
        for one in prompts
    ]


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_mixed_batch_is_answered_as_its_rows_are_one_by_one(
    editor, edited, prompts, how, use_cache
):
    before = generated(editor, prompts, use_cache=use_cache, **how)
    editor.edit(edited)
    together = generated(editor, prompts, use_cache=use_cache, **how)
    assert together != before
    assert together[1::2] == before[1::2]
    alone = [generated(editor, [one], use_cache=use_cache, **how)[0] for one in prompts]
    assert together == alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_on_either_side_change_no_answer(editor, edited, prompts, side):
    editor.edit(edited)
    ids, mask = rows_of(editor, prompts, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        said = editor.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, alone in enumerate(logits(editor, prompts)):
        torch.testing.assert_close(said[row][mask[row].bool()], alone, rtol=1e-3, atol=1e-3)


def test_out_of_scope_the_answer_is_the_models_own_bit_for_bit(editor, edited, outside):
    before = logits(editor, outside)
    editor.edit(edited)
    assert editor.scope(outside).requests == (None,) * 4
    for one, other in zip(before, logits(editor, outside), strict=True):
        assert torch.equal(one, other)


def test_an_edit_that_is_removed_was_never_there(editor, edited):
    editor.edit(edited[:4])
    editor.remove(edited[1].id)
    (removed,) = editor.deltas
    editor.undo()
    editor.edit([edited[0], edited[2], edited[3]])
    (never,) = editor.deltas
    assert removed.id == never.id


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
    (said,) = generated(editor, [prompt], do_sample=False)
    answer = editor.tokenizer(target, add_special_tokens=False)["input_ids"]
    if said[: len(answer)] != answer or len(answer) >= TOKENS:
        pytest.skip(f"this small model says {editor.tokenizer.decode(said)!r}")
    editor.undo()
    (alone,) = generated(editor, [prompt + target], do_sample=False)
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
    ids, mask = rows_of(editor, prompts[:4], "left")
    with torch.no_grad():
        editor.model(input_ids=ids, attention_mask=mask)
    assert not caplog.records
    with caplog.at_level("DEBUG", logger="kedit_memory"), torch.no_grad():
        editor.model(input_ids=ids, attention_mask=mask)
    said = [record.getMessage() for record in caplog.records]
    assert [one.partition(", p ")[0] for one in said] == [
        "row 0: entry 0",
        "row 1: outside",
        "row 2: entry 1",
        "row 3: outside",
    ]
    assert [float(one.partition(", p ")[2]) > 0.5 for one in said] == [True, False, True, False]
