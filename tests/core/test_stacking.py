"""Which kinds of edits go together on one model: what does not stack is refused, with the way out."""

import pytest
import torch

from kedit_core import KeditError
from kedit_core.delta_files import save_deltas
from kedit_core.digests import state_digest
from kedit_core.errors import StackingError

WEIGHTS, MEMORIES, PROMPTS = ("writer", "batcher"), ("memory", "shrinking"), ("words", "examples")


@pytest.fixture(autouse=True)
def more_methods(plugins, fake_memory):
    """Install two prompts, and a memory beside the same module as ``memory``."""
    found = [fake_memory(name, removes=False, layer=0, kind="prompt") for name in PROMPTS]
    for module in (*found, fake_memory("rival", removes=False, layer=-1)):
        plugins.register(module)
    return {module.__name__: module for module in found}


def saved(edit_with, path, *asked):
    """Return a file with the edits of a model of their own."""
    editor = edit_with(None)
    for request, method in asked:
        editor.edit(request, method)
    editor.save(path)
    return path


@pytest.mark.parametrize(
    "stack",
    [
        WEIGHTS,
        ("writer", "batcher", "writer"),
        ("writer", "memory"),
        ("batcher", "memory", "shrinking", "memory"),
        ("memory", "memory", "words"),
        ("writer", "memory", "words", "words"),
        ("words",),
    ],
    ids="-".join,
)
def test_what_goes_together_is_edited_saved_loaded_and_undone(
    edit_with, facts, logits, state_of, tmp_path, stack
):
    editor, fresh = edit_with(None), edit_with(None)
    before, said = state_of(editor.model), logits(editor.model)
    for request, method in zip(facts(len(stack)), stack, strict=True):
        editor.edit(request, method)
    editor.save(tmp_path / "edits.kedit")
    fresh.load(tmp_path / "edits.kedit")
    assert torch.equal(logits(fresh.model), logits(editor.model))
    while editor.deltas:
        editor.undo(editor.deltas[0].id)  # anything may go, from the bottom too
    assert state_of(editor.model) == before
    assert torch.equal(logits(editor.model), said)


REFUSED = [
    ("memory", "writer", "it changes weights, and the memory of 'memory'"),
    ("shrinking", "batcher", "undo the edits of 'shrinking' first"),
    (
        "memory",
        "rival",
        r"stands beside model\.layers\.1 already; undo the edits of 'memory' first",
    ),
    ("words", "writer", "'words' puts a prompt before everything"),
    ("words", "memory", "undo the edits of 'words' first"),
    ("words", "examples", "nothing goes on top of it"),
]


@pytest.mark.parametrize(("below", "above", "sentence"), REFUSED)
def test_what_does_not_stack_is_refused_until_the_edits_in_the_way_are_undone(
    edit_with, facts, state_of, below, above, sentence
):
    editor = edit_with(None)
    first, second, third = facts(3)
    editor.edit(first, below)
    newest = editor.edit(second, below)
    state = state_of(editor.model)
    with pytest.raises(StackingError, match=sentence) as refused:
        editor.edit(third, above)
    assert isinstance(refused.value, KeditError | ValueError)
    assert (refused.value.method, refused.value.in_the_way) == (above, newest.id)
    assert editor.deltas == (newest,)
    assert state_of(editor.model) == state
    while editor.deltas:
        editor.undo()
    editor.edit(third, above)


@pytest.mark.parametrize(("below", "above"), [("memory", "writer"), ("words", "shrinking")])
def test_what_a_kind_forbids_is_said_before_anything_is_computed(
    edit_with, facts, methods, below, above
):
    editor = edit_with(None)
    editor.edit(facts(1)[0], below)
    with pytest.raises(StackingError):
        editor.edit(facts(1, start=1)[0], above)
    assert methods[above].seen.batches == []


@pytest.mark.parametrize(("below", "above"), [row[:2] for row in REFUSED])
def test_a_file_brings_in_nothing_that_does_not_stack(
    edit_with, facts, state_of, tmp_path, below, above
):
    a, c = facts(2)
    editor = edit_with(None)
    editor.edit(c, below)
    state = state_of(editor.model)
    alone = saved(edit_with, tmp_path / "alone.kedit", (a, above))
    with pytest.raises(StackingError, match=f"alone.kedit: method '{above}'"):
        editor.load(alone)
    assert len(editor.deltas) == 1
    assert state_of(editor.model) == state


def test_a_file_is_loaded_below_what_would_not_take_it_on_top(edit_with, facts, logits, tmp_path):
    a, b = facts(2)
    weights = saved(edit_with, tmp_path / "weights.kedit", (a, "writer"))
    memory = saved(edit_with, tmp_path / "memory.kedit", (b, "memory"))
    editor = edit_with(None)
    editor.load(memory)
    with pytest.raises(StackingError, match="edits of 'writer' must come before those of 'memory'"):
        editor.load(weights)
    editor.undo()
    editor.load(weights)
    editor.load(memory)
    assert [delta.method for delta in editor.deltas] == ["writer", "memory"]


def test_a_file_in_an_order_that_cannot_be_is_refused(edit_with, facts, tmp_path):
    one, other = edit_with("writer"), edit_with("memory")
    written, memory = one.edit(facts(1)[0]), other.edit(facts(1, start=1)[0])
    save_deltas((memory, written), tmp_path / "edits.kedit")
    fresh = edit_with(None)
    with pytest.raises(StackingError, match="must come before"):
        fresh.load(tmp_path / "edits.kedit")
    assert fresh.deltas == ()


def test_removing_weights_from_under_a_memory_stays_allowed(edit_with, facts):
    editor = edit_with(None)
    a, b, c = facts(3)
    editor.edit([a, b], "batcher")
    memory = editor.edit(c, "memory")
    editor.remove(a.id)
    assert editor.deltas[-1] == memory
    assert [one.id for one in editor.deltas[0].requests] == [b.id]


def test_what_is_made_again_below_a_prompt_does_not_see_the_prompt(
    edit_with, facts, logits, tmp_path
):
    editor, never = edit_with(None), edit_with(None)
    a, b, c = facts(3)
    editor.edit([a, b], "memory")
    editor.edit(c, "words")
    editor.remove(a.id)
    never.edit(b, "memory")
    memory, words = editor.deltas
    assert memory == never.deltas[0]
    assert (memory.method, words.method) == ("memory", "words")
    editor.save(tmp_path / "edits.kedit")
    fresh = edit_with(None)
    fresh.load(tmp_path / "edits.kedit")
    assert torch.equal(logits(fresh.model), logits(editor.model))


def test_the_unedited_model_shows_without_everything_on_the_stack(edit_with, facts, logits):
    editor = edit_with(None)
    before = logits(editor.model)
    for request, method in zip(facts(4), ("writer", *MEMORIES, "words"), strict=True):
        editor.edit(request, method)
    edited, digest = logits(editor.model), state_digest(editor.model)
    with editor.original():
        assert torch.equal(logits(editor.model), before)
    assert torch.equal(logits(editor.model), edited)
    assert state_digest(editor.model) == digest
