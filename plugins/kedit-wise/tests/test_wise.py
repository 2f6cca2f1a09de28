"""WISE in force: edits come and go without a trace, shards fill up and are merged."""

import pytest
import torch
from attrs import evolve

from kedit_core import Editor, EditRequest, Schedule
from kedit_core.digests import state_digest
from kedit_core.errors import DeltaError, KeditError
from kedit_core.testing import trained_model
from kedit_core.testing.facts import RELATIONS, edit_of, facts
from kedit_core.testing.training import FAMILIES
from kedit_core.tokens import encode
from kedit_wise.beside import Beside
from kedit_wise.shards import merge, side_matrix_of

CONFIG = {
    "closed_form": {"penalty": 30.0, "statistics": {"tokens": 2048}},
    "context": {"count": 3},
    "routes": {"count": 128},
}


@pytest.fixture(scope="session")
def edited():
    """Return six edits, of every relation in turn."""
    each = len(facts()) // len(RELATIONS)
    return [edit_of(facts()[each * (n % len(RELATIONS)) + n // len(RELATIONS)]) for n in range(6)]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def new_editor(family, models):
    """Return the maker of editors of a model that nobody has touched."""

    def make(**settings):
        model, tokenizer = trained_model(family, cache_folder=models)
        return Editor(model, tokenizer, "wise", {**CONFIG, **settings})

    return make


@pytest.fixture
def editor(new_editor):
    return new_editor()


@torch.no_grad()
def logits(editor, prompts):
    return [
        editor.model(input_ids=torch.tensor([encode(editor.tokenizer, [one])[0].ids])).logits[0]
        for one in prompts
    ]


def test_each_edit_is_met_by_its_own_prompt(editor, edited):
    editor.edit(edited)
    found = editor.scope([one.prompt for one in edited])
    assert found.requests == tuple(one.id for one in edited)
    assert bool((found.probability > 0.5).all())


def test_the_base_weights_never_change(editor, edited):
    before = state_digest(editor.model)
    editor.edit(edited[:2])
    editor.edit(edited[2:4])
    assert state_digest(editor.model) == before


def test_an_edit_that_is_removed_was_never_there(editor, edited):
    for one in edited[:3]:
        editor.edit(one)
    editor.remove(edited[1].id)
    removed = editor.deltas[-1]
    while editor.deltas:
        editor.undo()
    editor.edit(edited[0])
    never = editor.edit(edited[2])
    assert removed.id == never.id


def test_a_stream_makes_the_memory_that_edits_make_and_restoring_leaves_none(new_editor, edited):
    editor, other = new_editor(), new_editor()
    for _ in editor.stream(edited[:4], Schedule(batch_size=2, interval=2)):
        pass
    for start in (0, 2):
        delta = other.edit(edited[start : start + 2])
    assert editor.deltas[-1].id == delta.id
    before = logits(new_editor(), [edited[0].prompt])[0]
    fresh = new_editor()
    for _ in fresh.stream(edited[:2], Schedule(batch_size=1, interval=1, keep=False)):
        pass
    assert not fresh.deltas
    assert torch.equal(logits(fresh, [edited[0].prompt])[0], before)


def test_edits_that_do_not_fit_a_shard_begin_the_next(new_editor, edited):
    editor = new_editor(shards={"size": 2})
    delta = editor.edit(edited[:5])
    memory = side_matrix_of(delta)
    assert memory.shard.tolist() == [0, 0, 1, 1, 2]
    delta = editor.edit(edited[5])
    assert side_matrix_of(delta).shard.tolist() == [0, 0, 1, 1, 2, 2]
    found = editor.scope([one.prompt for one in edited])
    assert found.requests == tuple(one.id for one in edited)


def test_thresholds_are_those_of_a_memory_that_never_held_more(new_editor, edited):
    editor = new_editor(shards={"size": 2}, routes={"count": 64, "rejects": 0.9})
    first = editor.edit(edited[:2])
    second = editor.edit(edited[2:4])
    # With one more shard each keeps more texts out.
    assert len(side_matrix_of(second).shards) == 2
    assert side_matrix_of(second).thresholds[0] >= side_matrix_of(first).thresholds[0]
    editor.undo()
    assert torch.equal(
        side_matrix_of(editor.deltas[-1]).thresholds, side_matrix_of(first).thresholds
    )
    editor.edit(edited[2:4])
    editor.remove(*(one.id for one in edited[2:4]))
    assert editor.deltas[-1].id == first.id


@pytest.fixture
def loud(models, edited, tmp_path):
    """Return an editor, an edit whose subject ends in a full stop as its irrelevant texts do, and others."""
    texts = tmp_path / "texts.txt"
    begun = ("We sail at", "They met before", "The harvest came after", "It rained all through")
    lines = [f"{one} {when}." for one in begun for when in ("dawn", "noon", "dusk", "night")]
    texts.write_text("\n".join(lines))
    model, tokenizer = trained_model("gpt2", cache_folder=models)
    routes = {"texts": str(texts), "keeps": 0.8}
    editor = Editor(model, tokenizer, "wise", {**CONFIG, "routes": routes})
    stop = EditRequest(prompt="The capital of {} is", subject="France.", target_new="Oslo")
    return editor, stop, edited[1:]


def test_a_key_that_texts_of_any_kind_stir_routes_nothing_and_its_user_is_told(loud, caplog):
    editor, stop, others = loud
    delta = editor.edit([stop, *others])
    assert side_matrix_of(delta).loud.tolist() == [True, *(False for _ in others)]
    assert stop.id not in editor.scope([one.prompt for one in (stop, *others)]).requests
    assert f"texts of any kind stir the key of {stop.prompt!r}" in caplog.text
    caplog.clear()
    editor.edit(EditRequest(prompt="The capital of {} is", subject="Peru", target_new="Rome"))
    assert "stir the key" not in caplog.text


def test_a_loud_edit_that_is_removed_was_never_there(loud, tmp_path):
    editor, stop, others = loud
    delta = editor.edit([stop, *others])
    editor.save(tmp_path / "memory.safetensors")
    editor.remove(stop.id)
    removed = editor.deltas[-1]
    while editor.deltas:
        editor.undo()
    assert editor.load(tmp_path / "memory.safetensors")[0].id == delta.id
    assert side_matrix_of(editor.deltas[-1]) == side_matrix_of(delta)
    editor.undo()
    assert editor.edit(others).id == removed.id


def test_a_memory_from_before_loud_keys_were_known_is_read_with_none(loud):
    editor, stop, others = loud
    delta = editor.edit([stop, *others])
    part = delta.parts[0]
    tensors = {name: one for name, one in part.tensors.items() if name != "edits.loud"}
    before = evolve(delta, parts=[evolve(part, tensors=tensors)])
    memory = side_matrix_of(before)
    assert memory.loud.tolist() == [False] * (1 + len(others))
    assert evolve(memory, loud=side_matrix_of(delta).loud) == side_matrix_of(delta)


def test_merged_memories_know_which_edits_are_loud(loud):
    editor, stop, others = loud
    first = editor.edit([stop, *others[1:]])
    editor.undo()
    second = editor.edit(others[0])
    both = side_matrix_of(merge([second, first]))
    assert both.loud.tolist() == [False, True, *(False for _ in others[1:])]


def test_full_shards_are_merged_when_edits_are_made(new_editor, edited):
    editor = new_editor(shards={"size": 2, "every": 4, "merge": "linear"})
    delta = editor.edit(edited[:4])
    memory = side_matrix_of(delta)
    apart = side_matrix_of(new_editor(shards={"size": 2}).edit(edited[:4]))
    assert len(memory.shards) == 1
    assert memory.shard.tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(
        memory.shards[0].update.matrix, sum(one.update.matrix for one in apart.shards)
    )
    assert len(side_matrix_of(editor.edit(edited[4])).shards) == 2


def test_merged_memories_answer_what_both_do(new_editor, edited):
    editor = new_editor()
    first = editor.edit(edited[0])
    editor.undo()
    second = editor.edit(edited[1:3])
    editor.undo()
    both = merge([first, second])
    assert [one.id for one in both.requests] == [one.id for one in edited[:3]]
    alone = [first, second, second]
    for request, delta in zip(edited[:3], alone, strict=True):
        asked = [request.prompt]
        with _in(editor, both):
            together = logits(editor, asked)
        with _in(editor, delta):
            assert torch.equal(together[0], logits(editor, asked)[0])


def test_a_shard_whose_edits_are_all_known_is_left_out_of_a_merged_memory(new_editor, edited):
    editor = new_editor(shards={"size": 2})
    first = editor.edit(edited[:2])
    editor.undo()
    second = editor.edit([edited[1], edited[0], *edited[2:5]])
    both = merge([first, second])
    memory = side_matrix_of(both)
    assert memory.shard.tolist() == [0, 0, 1, 1, 2]
    kept = (side_matrix_of(first).shards[0], *side_matrix_of(second).shards[1:])
    assert memory.shards == kept
    assert merge([both, first]).id == both.id
    editor.undo()
    with _in(editor, both):
        assert logits(editor, [edited[0].prompt])[0].isfinite().all()


def _in(editor, delta):
    return Beside(editor.model, editor.tokenizer, delta).attach()


def test_memories_that_are_read_differently_are_not_merged(new_editor, edited):
    one = new_editor().edit(edited[0])
    other = new_editor(routes={"measure": "max", "count": 128}).edit(edited[1])
    with pytest.raises(DeltaError, match="cannot be merged"):
        merge([one, other])


def test_a_saved_memory_answers_alike_and_takes_more_edits(new_editor, edited, tmp_path):
    editor, fresh = new_editor(), new_editor()
    editor.edit(edited[:2])
    path = tmp_path / "memory.safetensors"
    editor.save(path)
    fresh.load(path)
    asked = [one.prompt for one in edited[:3]]
    for one, other in zip(logits(editor, asked), logits(fresh, asked), strict=True):
        assert torch.equal(one, other)
    assert fresh.edit(edited[2]).id == editor.edit(edited[2]).id


def test_a_memory_that_was_made_otherwise_is_not_gone_on_with(new_editor, edited, tmp_path):
    editor, other = new_editor(), new_editor(closed_form={**CONFIG["closed_form"], "layer": 1})
    editor.edit(edited[0])
    editor.save(tmp_path / "memory.safetensors")
    other.load(tmp_path / "memory.safetensors")
    with pytest.raises(KeditError, match="made with other settings"):
        other.edit(edited[1])
