"""The editor as its users meet it: edits go in, come out in any order, and survive being saved."""

import copy
import gc
import sys
import threading
from importlib import import_module
from types import ModuleType

import pytest
import torch
from attrs import evolve

from kedit_core import (
    Applied,
    Delta,
    Dense,
    EditRequest,
    KeditError,
    LowRank,
    MethodInfo,
    Probe,
    SideMemory,
    hookimpl,
)
from kedit_core.digests import state_digest
from kedit_core.errors import (
    ConfigError,
    DeltaError,
    ModelError,
    NotInForceError,
    RequestError,
    UnknownMethodError,
)
from kedit_core.reports import Scope

FAMILIES = ("gpt2", "llama")
WRITERS, MEMORIES = ("writer", "batcher"), ("memory", "shrinking")
ALL = (*WRITERS, *MEMORIES)


def ids(deltas):
    return [delta.id for delta in deltas]


def held(editor):
    return [request.id for delta in editor.deltas for request in delta.requests]


def differs(one, other):
    return bool((one - other).abs().max() > 1e-6)


# Editing and undoing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ALL)
def test_an_edit_changes_what_the_model_says_and_undo_takes_it_back(
    edit_with, facts, logits, state_of, method, family
):
    editor = edit_with(method, family)
    before, state = logits(editor.model), state_of(editor.model)
    delta = editor.edit(facts(1)[0])
    assert differs(logits(editor.model), before)
    assert ids(editor.deltas) == [delta.id]
    editor.undo()
    assert editor.deltas == ()
    assert torch.equal(logits(editor.model), before)
    assert state_of(editor.model) == state


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("method", ALL)
def test_undoing_edits_in_any_order_restores_the_model(
    edit_with, facts, logits, state_of, method, order
):
    editor = edit_with(method)
    before, state = logits(editor.model), state_of(editor.model)
    requests = facts(3)
    deltas = [editor.edit(request) for request in requests]
    for count, i in enumerate(order):
        assert sorted(held(editor)) == sorted(requests[n].id for n in order[count:])
        if method in WRITERS:
            editor.undo(deltas[i].id)
        else:
            editor.remove(requests[i].id)
    assert state_of(editor.model) == state
    assert torch.equal(logits(editor.model), before)


def test_later_weight_edits_stay_as_computed_when_an_earlier_one_goes(edit_with, facts):
    editor = edit_with()
    deltas = [editor.edit(request) for request in facts(3)]
    editor.undo(deltas[0].id)
    assert editor.deltas == (deltas[1], deltas[2])


@pytest.mark.parametrize("method", ALL)
def test_undo_with_recompute_gives_what_editing_without_it_would_have_given(
    edit_with, facts, logits, method
):
    first, second, third = facts(3)
    editor, never = edit_with(method), edit_with(method)
    deltas = [editor.edit(request) for request in (first, second, third)]
    editor.undo(deltas[0].id, recompute=True)
    for request in (second, third):
        never.edit(request)
    assert ids(editor.deltas) == ids(never.deltas)
    assert torch.equal(logits(editor.model), logits(never.model))


def test_undo_says_what_there_is_when_it_is_asked_for_something_else(edit_with, facts):
    editor = edit_with()
    with pytest.raises(LookupError, match="no edit"):
        editor.undo()
    delta = editor.edit(facts(1)[0])
    with pytest.raises(NotInForceError, match=delta.id):
        editor.undo("nobody")
    with pytest.raises(NotInForceError, match=facts(1)[0].id):
        editor.remove("nobody")
    assert ids(editor.deltas) == [delta.id]


def test_an_edit_in_force_is_not_made_twice(edit_with, facts):
    editor = edit_with("batcher")
    request = facts(1)[0]
    with pytest.raises(RequestError, match="twice"):
        editor.edit([request, request])
    editor.edit(request)
    with pytest.raises(RequestError, match="in force already"):
        editor.edit(request)
    with pytest.raises(RequestError, match="in force already"):
        editor.edit([request], "memory")
    editor.undo()
    editor.edit(request)


def test_a_method_for_single_edits_refuses_several_and_says_what_to_do(edit_with, facts):
    editor = edit_with("writer")
    with pytest.raises(KeditError, match="one request at a time"):
        editor.edit(facts(2))
    with pytest.raises(RequestError, match="no request"):
        editor.edit([])


def test_methods_stack_and_each_comes_out_alone(edit_with, facts, logits, state_of):
    editor = edit_with(None)
    before, state = logits(editor.model), state_of(editor.model)
    a, b, c, d = facts(4)
    written = editor.edit(a, "writer")
    batch = editor.edit([b], "batcher")
    memory = editor.edit(c, "memory")
    other = editor.edit(d, "shrinking")
    assert editor.deltas == (written, batch, memory, other)
    editor.undo(memory.id)
    editor.undo(written.id)
    editor.undo()
    editor.undo()
    assert torch.equal(logits(editor.model), before)
    assert state_of(editor.model) == state


def test_an_editor_without_a_method_asks_for_one(edit_with, facts):
    with pytest.raises(KeditError, match="method="):
        edit_with(None).edit(facts(1)[0])
    with pytest.raises(UnknownMethodError, match="did you mean 'writer'"):
        edit_with("writter")


# Removing single requests


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_one_request_of_a_batch_solves_the_batch_again_without_it(
    edit_with, facts, methods, family
):
    editor, never = edit_with("batcher", family), edit_with("batcher", family)
    first, (a, b, c), last = facts(1), facts(3, start=1), facts(1, start=4)
    before = editor.edit(first)
    editor.edit([a, b, c])
    after = editor.edit(last)
    editor.remove(b.id)
    again = methods["batcher"].seen.batches[-1]
    assert [request.id for request in again.requests] == [a.id, c.id]
    never.edit(first)
    never.edit([a, c])
    assert ids(editor.deltas) == [*ids(never.deltas), after.id]
    assert editor.deltas[0] is before
    assert editor.deltas[1].provenance.after == (before.id,)


@pytest.mark.parametrize("method", ALL)
def test_removing_the_only_request_leaves_the_model_as_it_was(
    edit_with, facts, state_of, logits, method
):
    editor = edit_with(method)
    before, state = logits(editor.model), state_of(editor.model)
    request = facts(1)[0]
    editor.edit(request)
    editor.remove(request.id)
    assert editor.deltas == ()
    assert state_of(editor.model) == state
    assert torch.equal(logits(editor.model), before)


def test_requests_of_several_methods_are_removed_in_one_call(edit_with, facts):
    editor = edit_with("batcher")
    a, b, c, d = facts(4)
    editor.edit([a, b])
    editor.edit([c, d], "shrinking")
    editor.remove(a.id, d.id)
    assert held(editor) == [b.id, c.id]


def test_removing_all_but_one_unknown_request_changes_nothing(edit_with, facts, state_of):
    editor = edit_with("batcher")
    a, b = facts(2)
    editor.edit([a, b])
    state, deltas = state_of(editor.model), editor.deltas
    with pytest.raises(LookupError):
        editor.remove(a.id, "nobody")
    assert state_of(editor.model) == state
    assert editor.deltas == deltas


# Memories


@pytest.mark.parametrize("method", MEMORIES)
def test_a_memory_is_replaced_by_its_successor_and_comes_back_when_that_is_undone(
    edit_with, facts, logits, method
):
    editor = edit_with(method)
    a, b = facts(2)
    first = editor.edit(a)
    alone = logits(editor.model)
    second = editor.edit(b)
    assert editor.deltas == (second,)
    assert held(editor) == [a.id, b.id]
    assert differs(logits(editor.model), alone)
    editor.undo()
    assert editor.deltas == (first,)
    assert torch.equal(logits(editor.model), alone)


@pytest.mark.parametrize("method", MEMORIES)
def test_a_memory_is_computed_on_the_model_without_it_and_with_all_else(
    edit_with, facts, methods, logits, method
):
    editor, plain = edit_with(method), edit_with(method)
    a, b = facts(2)
    editor.edit(a)
    editor.edit(b)
    plain.edit([a, b])
    one, both = editor.deltas[0].parts[0].tensors, plain.deltas[0].parts[0].tensors
    assert all(torch.equal(one[name], both[name]) for name in both)
    assert [len(previous) for previous in methods[method].seen.previous] == [0, 1, 0]


@pytest.mark.parametrize("method", MEMORIES)
def test_undoing_a_superseded_memory_drops_the_requests_that_came_with_it(
    edit_with, facts, logits, method
):
    editor, never = edit_with(method), edit_with(method)
    (a, b), c, d = facts(2), *facts(2, start=2)
    editor.edit(c)
    superseded = editor.edit([a, b])
    editor.edit(d)
    editor.undo(superseded.id)
    assert held(editor) == [c.id, d.id]
    never.edit([c, d])
    assert not differs(logits(editor.model), logits(never.model))
    with pytest.raises(LookupError):
        editor.undo(superseded.id)


@pytest.mark.parametrize("method", MEMORIES)
def test_what_is_removed_from_a_memory_never_comes_back(edit_with, facts, methods, method):
    editor = edit_with(method)
    a, b, c = facts(3)
    for request in (a, b, c):
        editor.edit(request)
    editor.remove(b.id)
    assert held(editor) == [a.id, c.id]
    asked = methods[method].seen.batches[-1]
    assert asked.remove == ((b.id,) if method == "shrinking" else ())
    while editor.deltas:
        assert b.id not in held(editor)
        editor.undo()


@pytest.mark.parametrize("method", MEMORIES)
def test_every_undo_after_a_removal_takes_something_out(edit_with, facts, logits, method):
    editor = edit_with(method)
    before = logits(editor.model)
    a, b = facts(2)
    editor.edit(a)
    editor.edit(b)
    editor.remove(b.id)
    editor.undo(editor.deltas[0].id)
    assert editor.deltas == ()
    assert torch.equal(logits(editor.model), before)


@pytest.mark.parametrize("method", MEMORIES)
def test_removing_from_a_memory_leaves_the_order_of_the_edits(edit_with, facts, method):
    editor = edit_with(method)
    a, b, c = facts(3)
    editor.edit(a)
    editor.edit(b)
    newest = editor.edit(c, next(other for other in MEMORIES if other != method))
    editor.remove(b.id)
    assert editor.deltas[-1] is newest
    editor.undo()
    assert held(editor) == [a.id]


@pytest.mark.parametrize("method", MEMORIES)
def test_a_judgement_against_the_unedited_model_leaves_the_memory_removable(
    edit_with, facts, logits, state_of, method
):
    editor = edit_with(method)
    before, state = logits(editor.model), state_of(editor.model)
    request = EditRequest(
        prompt="the capital of land0 is",
        target_new="Rome",
        locality=(Probe(prompt="the capital of land1 is", answers=("Paris",)),),
    )
    editor.edit(request)
    edited = logits(editor.model)
    editor.evaluate(request, ["locality.kl", "locality.unchanged"])
    assert torch.equal(logits(editor.model), edited)
    editor.undo()
    assert torch.equal(logits(editor.model), before)
    assert state_of(editor.model) == state


# The unedited model


@pytest.mark.parametrize("method", ALL)
def test_the_original_shows_inside_the_block_and_the_edit_after_it(
    edit_with, facts, logits, state_of, method
):
    editor = edit_with(method)
    before = logits(editor.model)
    editor.edit(facts(1)[0])
    edited, digest = logits(editor.model), state_digest(editor.model)
    with editor.original():
        assert torch.equal(logits(editor.model), before)
        with editor.original():
            assert torch.equal(logits(editor.model), before)
        assert torch.equal(logits(editor.model), before)
    assert torch.equal(logits(editor.model), edited)
    with pytest.raises(ZeroDivisionError), editor.original():
        _ = 1 / 0
    assert torch.equal(logits(editor.model), edited)
    assert state_digest(editor.model) == digest
    assert len(editor.deltas) == 1


def _looker(*, leaves: bool) -> ModuleType:
    """Return a memory that compares the model with the unedited one, and may leave a hook."""
    module = ModuleType("looker")
    module.said = []

    @hookimpl
    def method_info():
        return MethodInfo(name="looker", summary="fake", kind="side-memory")

    @hookimpl
    def compute_delta(model, tokenizer, batch, weights):
        ids = tokenizer(batch.requests[0].prompt, return_tensors="pt")
        module.said.append(model(**ids).logits)
        with weights.original():
            module.said.append(model(**ids).logits)
        if leaves:
            model.lm_head.register_forward_hook(lambda *_: None)
        added = 0.01 * torch.ones(model.config.hidden_size)
        part = SideMemory(at=weights.layout.layers[0].path, tensors={"added": added})
        return Delta(method="looker", requests=batch.requests, parts=[part])

    @hookimpl
    def apply_delta(model, delta):
        part = delta.parts[0]
        hook = lambda _, __, output: output + part.tensors["added"]  # noqa: E731
        return Applied(model.get_submodule(part.at).register_forward_hook(hook).remove)

    module.method_info, module.compute_delta = method_info, compute_delta
    module.apply_delta = apply_delta
    return module


@pytest.mark.parametrize("leaves", [False, True])
def test_a_method_that_asks_for_the_unedited_model_sees_it_without_memories(
    edit_with, facts, plugins, tiny, tokenizer, state_of, leaves
):
    looker = _looker(leaves=leaves)
    plugins.register(looker)
    editor = edit_with("memory")
    plain = state_of(editor.model)
    first, second, third = facts(3)
    held = editor.edit(first)
    mine = editor.model.lm_head.register_forward_hook(lambda *_: None)
    added = editor.edit(second, method="looker")
    ids = tokenizer(second.prompt, return_tensors="pt")
    assert torch.equal(looker.said[1], tiny("llama")(**ids).logits)
    assert not torch.equal(looker.said[0], looker.said[1])
    editor.edit(third)  # the memory is replaced, so its hooks are still the editor's to take off
    editor.undo()
    editor.undo(added.id)
    assert editor.deltas == (held,)
    mine.remove()
    editor.undo()
    assert state_of(editor.model) == plain


@pytest.mark.parametrize("method", ALL)
def test_judging_inside_the_original_block_judges_the_unedited_model(
    edit_with, facts, logits, method
):
    editor = edit_with(method)
    request = EditRequest(
        prompt="the capital of land0 is",
        target_new="Rome",
        locality=(Probe(prompt="the capital of land1 is", answers=("Paris",)),),
    )
    before = logits(editor.model)
    editor.edit(request)
    with editor.original():
        report = editor.evaluate(request, ["locality.kl"])
        assert report.means() == {"locality.kl": 0.0}
        assert torch.equal(logits(editor.model), before)


@pytest.mark.parametrize("method", ALL)
def test_no_edit_is_made_or_undone_while_the_original_is_shown(
    edit_with, facts, logits, state_of, method
):
    editor = edit_with(method)
    a, b = facts(2)
    editor.edit(a)
    edited, state = logits(editor.model), state_digest(editor.model)
    with editor.original():
        with pytest.raises(KeditError, match="original"):
            editor.edit(b)
        with pytest.raises(KeditError, match="original"):
            editor.undo()
        with pytest.raises(KeditError, match="original"):
            editor.remove(a.id)
    assert held(editor) == [a.id]
    assert torch.equal(logits(editor.model), edited)
    assert state_digest(editor.model) == state


# Judging and completing


def test_an_evaluation_names_the_method_and_counts_the_edits(edit_with, facts):
    editor = edit_with("batcher")
    requests = facts(3)
    assert editor.evaluate(requests).step == 0
    editor.edit(requests[:2])
    editor.edit(requests[2], "memory")
    report = editor.evaluate(requests)
    assert (report.method, report.step) == ("batcher+memory", 3)
    assert set(report.means()) == {"reliability.exact", "generalization.exact"}
    assert report.missing == {"locality.exact": 3, "portability.exact": 3}


def test_an_edit_that_makes_the_target_certain_is_judged_exact_and_completed(
    edit_with, facts, plugins, tokenizer
):
    request = facts(1)[0]
    (target,) = tokenizer(request.target_new)["input_ids"]

    def shout(model, batch, weights):
        read = tokenizer(batch.requests[0].prompt, return_tensors="pt")
        with torch.no_grad():
            hidden = model.model(**read).last_hidden_state[0, -1]  # (width,)
        update = torch.zeros_like(model.lm_head.weight)
        update[target] = 50 * hidden
        return _delta(
            batch, weights, parts=[Dense(weight="lm_head.weight", update=update.detach())]
        )

    plugins.register(_clumsy(shout))
    editor = edit_with("clumsy")
    editor.edit(request)
    assert editor.complete([request.prompt], tokens=1) == [request.target_new]
    assert editor.evaluate(request).means()["reliability.exact"] == 1.0
    with editor.original():
        assert editor.complete([request.prompt], tokens=1) != [request.target_new]
        assert editor.evaluate(request).means()["reliability.exact"] == 0.0


def test_one_prompt_is_completed_as_one_prompt(edit_with):
    editor = edit_with()
    prompts = ["the capital of land0 is", "land1 lies in"]
    both = editor.complete(prompts, tokens=3)
    assert [editor.complete([prompt], tokens=3)[0] for prompt in prompts] == both
    assert editor.complete(prompts[0], tokens=3) == both[:1]


def test_reading_the_model_leaves_its_mode_and_gradients_alone(edit_with, facts, state_of):
    editor = edit_with()
    editor.model.train()
    state = state_of(editor.model)
    editor.evaluate(facts(1)[0])
    editor.complete(["the capital of"], tokens=2)
    with editor.original():
        pass
    assert state_of(editor.model) == state


def test_the_newest_edit_that_can_tell_says_what_is_in_its_scope(edit_with, facts, plugins):
    telling = _clumsy(lambda model, batch, weights: _delta(batch, weights))

    @hookimpl
    def scope_classify(delta, prompts):
        inside = [request.prompt in prompts for request in delta.requests]
        found = [delta.requests[0].id if any(inside) else None for _ in prompts]
        return Scope(
            probability=torch.tensor([float(one is not None) for one in found]), requests=found
        )

    telling.scope_classify = scope_classify
    plugins.register(telling)
    editor = edit_with("clumsy")
    a, b, c = facts(3)
    editor.edit(a)
    editor.edit(b)
    editor.edit(c, "writer")
    assert editor.scope([b.prompt]).requests == (b.id,)
    assert editor.scope(b.prompt).requests == (b.id,)
    assert editor.scope([a.prompt, "land7 lies in"]).requests == (None, None)


def test_no_edit_in_force_says_what_is_in_its_scope(edit_with, facts):
    editor = edit_with()
    editor.edit(facts(1)[0])
    with pytest.raises(KeditError, match="scope"):
        editor.scope(["the capital of"])


# Saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_edits_say_the_same_on_a_fresh_model(
    edit_with, facts, logits, tmp_path, family, dtype
):
    editor, fresh = (edit_with(None, family, dtype=dtype) for _ in range(2))
    a, b, c, d = facts(4)
    editor.edit(a, "writer")
    editor.edit([b, c], "batcher", {"dense": True})
    editor.edit(d, "memory")
    editor.save(tmp_path / "edits.kedit")
    loaded = fresh.load(tmp_path / "edits.kedit")
    assert loaded == fresh.deltas == editor.deltas
    assert torch.equal(logits(fresh.model), logits(editor.model))
    assert state_digest(fresh.model) == state_digest(editor.model)
    assert [one.provenance for one in loaded] == [one.provenance for one in editor.deltas]
    fresh.undo(loaded[0].id)
    fresh.remove(b.id)
    assert held(fresh) == [c.id, d.id]


def test_saving_without_edits_gives_a_file_that_loads_as_none(edit_with, tmp_path):
    edit_with().save(tmp_path / "none.kedit")
    assert edit_with().load(tmp_path / "none.kedit") == ()


@pytest.mark.parametrize("method", ["writer", "memory"])
def test_edits_of_another_model_are_refused_and_nothing_changes(
    edit_with, facts, tmp_path, state_of, method
):
    editor = edit_with(method)
    editor.edit(facts(1)[0])
    editor.save(tmp_path / "edits.kedit")
    for other in (edit_with(seed=1), edit_with(family="gpt2")):
        state = state_of(other.model)
        with pytest.raises(DeltaError):
            other.load(tmp_path / "edits.kedit")
        assert other.deltas == ()
        assert state_of(other.model) == state
    with pytest.raises(DeltaError, match="another model"):
        edit_with(seed=1).load(tmp_path / "edits.kedit")


@pytest.mark.parametrize("method", ["writer", "memory"])
def test_edits_made_in_float32_fit_the_same_model_in_bfloat16(edit_with, facts, tmp_path, method):
    editor, other = edit_with(method), edit_with(method, dtype=torch.bfloat16)
    editor.edit(facts(1)[0])
    editor.save(tmp_path / "edits.kedit")
    assert len(other.load(tmp_path / "edits.kedit")) == 1


def test_a_file_whose_second_edit_does_not_fit_puts_nothing_in(
    edit_with, facts, tmp_path, tiny, state_of
):
    changed = (
        tiny()
    )  # where weights are edited it is the same model; a memory is made for all of it
    changed.lm_head.weight.data.add_(1)
    editor, other = edit_with(None), edit_with(None, model=changed)
    editor.edit(facts(1)[0], "writer")
    editor.edit(facts(1, start=1)[0], "memory")
    editor.save(tmp_path / "edits.kedit")
    state = state_of(other.model)
    with pytest.raises(DeltaError, match="another model"):
        other.load(tmp_path / "edits.kedit")
    assert other.deltas == ()
    assert state_of(other.model) == state


@pytest.mark.parametrize("method", ALL)
def test_edits_in_force_are_not_loaded_a_second_time(edit_with, facts, tmp_path, logits, method):
    editor = edit_with(method)
    editor.edit(facts(1)[0])
    editor.save(tmp_path / "edits.kedit")
    said = logits(editor.model)
    with pytest.raises(DeltaError, match="in force already"):
        editor.load(tmp_path / "edits.kedit")
    assert len(editor.deltas) == 1
    assert torch.equal(logits(editor.model), said)
    editor.undo()
    editor.load(tmp_path / "edits.kedit")
    assert torch.equal(logits(editor.model), said)


def test_loading_a_memory_never_drops_the_requests_of_the_one_in_force(edit_with, facts, tmp_path):
    editor, other = edit_with("memory"), edit_with("memory")
    a, b = facts(2)
    other.edit(b)
    other.save(tmp_path / "b.kedit")
    editor.edit(a)
    with pytest.raises(DeltaError, match="memory"):
        editor.load(tmp_path / "b.kedit")
    assert held(editor) == [a.id]
    other.edit(a)
    other.save(tmp_path / "both.kedit")
    editor.load(tmp_path / "both.kedit")
    assert sorted(held(editor)) == sorted([a.id, b.id])


def test_loading_asks_for_a_plugin_that_is_missing(edit_with, facts, tmp_path, plugins):
    editor = edit_with()
    editor.edit(facts(1)[0])
    editor.save(tmp_path / "edits.kedit")
    with pytest.raises(UnknownMethodError, match="writer"):
        edit_with(None, plugins=type(plugins)()).load(tmp_path / "edits.kedit")


# Who owns a model


def test_two_editors_on_two_models_share_nothing(edit_with, facts, logits, state_of):
    one, other = edit_with(), edit_with()
    state = state_of(other.model)
    one.edit(facts(1)[0])
    assert other.deltas == ()
    assert state_of(other.model) == state
    other.edit(facts(1)[0])
    one.undo()
    assert state_of(one.model) == state
    assert len(other.deltas) == 1


def test_a_model_has_one_editor_until_that_one_lets_go(edit_with, facts):
    editor = edit_with()
    with pytest.raises(ModelError, match="another editor"):
        edit_with(model=editor.model)
    editor.close()
    edit_with(model=editor.model).edit(facts(1)[0])


def test_an_editor_that_could_not_start_owns_nothing(edit_with, tiny):
    model = tiny()
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        edit_with(model=model, config={"scal": 1})
    assert edit_with(model=model).model is model


def test_an_editor_that_nobody_holds_any_more_lets_go_of_its_model(edit_with, tiny):
    model = tiny()
    gc.disable()
    try:
        for _ in range(3):
            edit_with(model=model)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ALL)
def test_a_copy_of_an_edited_model_is_a_model_of_its_own(
    edit_with, facts, logits, state_of, method
):
    editor = edit_with(method)
    a, b = facts(2)
    editor.edit(a)
    copied = copy.deepcopy(editor.model)
    said, state = logits(copied), state_digest(copied)
    assert torch.equal(said, logits(editor.model))
    other = edit_with(method, model=copied)
    other.edit(b)
    editor.undo()
    assert held(other) == [b.id]
    other.undo()
    assert torch.equal(logits(copied), said)
    assert state_digest(copied) == state


def test_a_model_restored_from_a_state_dict_can_be_edited(edit_with, facts, tiny, logits, tmp_path):
    editor = edit_with()
    editor.edit(facts(1)[0])
    torch.save(editor.model.state_dict(), tmp_path / "weights.pt")
    torch.save(editor.model, tmp_path / "whole.pt")
    fresh = tiny(seed=5)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    for model in (fresh, whole):
        assert torch.equal(logits(model), logits(editor.model))
        edit_with(model=model).edit(facts(1)[0])


# What a method gets, and what it may leave behind


def test_methods_see_requests_without_their_probes(edit_with, methods):
    probe = Probe(prompt="land1 lies in", answers=("Rome",))
    request = EditRequest(
        prompt="the capital of {} is",
        subject="land0",
        target_new="Rome",
        paraphrases=("land0 speaks",),
        locality=(probe,),
        portability=(probe,),
        extra={"case": 7},
    )
    editor = edit_with()
    delta = editor.edit(request)
    (seen,) = methods["writer"].seen.batches[0].requests
    for shown in (seen, *delta.requests):
        assert (shown.paraphrases, shown.locality, shown.portability) == ((), (), ())
        assert shown.id == request.id
        assert shown.extra == {"case": 7}


def test_methods_find_the_model_in_eval_mode_without_gradients(edit_with, facts, methods, state_of):
    editor = edit_with()
    editor.model.train()
    editor.model.get_input_embeddings().eval()
    editor.model.lm_head.requires_grad_(False)
    state = state_of(editor.model)
    editor.edit(facts(1)[0])
    assert methods["writer"].seen.states == [(False, False)]
    editor.undo()
    assert state_of(editor.model) == state


def test_methods_are_told_the_step_and_their_own_earlier_deltas(edit_with, facts, methods):
    editor = edit_with(None)
    a, b, c = facts(3)
    first = editor.edit(a, "writer")
    second = editor.edit(b, "writer")
    memory = editor.edit(c, "memory")
    seen = methods["writer"].seen
    assert seen.previous == [(), (first,)]
    assert [batch.step for batch in seen.batches] == [0, 1]
    for request in facts(3, start=3):
        editor.edit(request, "memory")
    assert [batch.step for batch in methods["memory"].seen.batches] == [0, 1, 2, 3]
    assert memory.provenance.after == (first.id, second.id)


@pytest.mark.parametrize("chat", [True, False])
def test_the_chat_flag_reaches_the_method_and_the_provenance(edit_with, facts, methods, chat):
    editor = edit_with(chat=chat)
    delta = editor.edit(facts(1)[0])
    assert methods["writer"].seen.batches[0].chat is chat
    assert delta.provenance.chat is chat


def test_a_batch_is_solved_again_in_the_way_it_was_solved_first(
    edit_with, facts, methods, tmp_path
):
    a, b, c = facts(3)
    editor, other = edit_with("batcher", chat=True, config={"rank": 2}), edit_with("batcher")
    editor.edit([a, b])
    editor.edit(c)
    editor.save(tmp_path / "edits.kedit")
    loaded = other.load(tmp_path / "edits.kedit")
    other.remove(a.id)
    other.undo(loaded[1].id)
    seen = methods["batcher"].seen
    assert seen.batches[-1].chat is True
    assert seen.configs[-1].rank == 2


def test_a_setting_of_one_call_beats_the_editors_own(edit_with, facts, methods, tmp_path):
    file = tmp_path / "strength.toml"
    file.write_text("rank = 2\nscale = 0.5\n")
    a, b, c, d = facts(4)
    editor = edit_with(config={"rank": 3})
    editor.edit(a)
    editor.edit(b, config=file)
    editor.edit(c, config=editor.deltas[0].provenance.config | {"seed": 9})
    editor.edit(d, "batcher")
    assert [config.rank for config in methods["writer"].seen.configs] == [3, 2, 3]
    assert editor.deltas[2].provenance.seed == 9
    assert methods["batcher"].seen.configs[0].rank == 1
    with pytest.raises(ConfigError, match="rank: expected int"):
        editor.edit(facts(1, start=4)[0], config={"rank": "2"})


def test_a_configuration_that_belongs_to_no_method_is_not_dropped_in_silence(edit_with):
    with pytest.raises(ConfigError, match="method"):
        edit_with(None, config={"rank": 3})


def test_a_preset_for_the_model_lies_above_the_defaults_and_below_the_user(
    edit_with, facts, methods, plugins, tmp_path, monkeypatch
):
    folder = tmp_path / "presetting"
    (folder / "presets").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    for file, width, scale in (("other", 99, 7.0), ("this", 16, 0.25)):
        (folder / "presets" / f"{file}.toml").write_text(
            f'name = "{file}"\nmodel_type = "llama"\nlayers = 2\nwidth = {width}\n'
            f'source = "paper"\n[config]\nscale = {scale}\nrank = 2\n'
        )
    monkeypatch.syspath_prepend(tmp_path)
    module = import_module("presetting")
    monkeypatch.delitem(sys.modules, "presetting")
    writer = methods["writer"]
    module.compute_delta = hookimpl(
        lambda model, tokenizer, batch, config, previous, weights, progress: evolve(
            writer.compute_delta(model, tokenizer, batch, config, previous, weights, progress),
            method="presetting",
        )
    )
    info = MethodInfo(
        name="presetting", summary="", kind="weights", config=writer.method_info().config
    )
    module.method_info = hookimpl(lambda: info)
    plugins.register(module)
    a, b, c = facts(3)
    editor = edit_with("presetting", config={"rank": 3})
    editor.edit(a)
    editor.edit(b, config={})
    other = edit_with("presetting", "gpt2")
    other.edit(c)
    found = [(config.scale, config.rank) for config in writer.seen.configs]
    assert found == [(0.25, 3), (0.25, 2), (0.1, 1)]


def _clumsy(do) -> ModuleType:
    """Return a method that does something to the model and then what ``do`` returns."""
    module = ModuleType("clumsy")

    @hookimpl
    def method_info():
        return MethodInfo(name="clumsy", summary="", kind="weights")

    @hookimpl
    def compute_delta(model, batch, weights):
        return do(model, batch, weights)

    module.method_info, module.compute_delta = method_info, compute_delta
    return module


def _delta(batch, weights, **changes):
    down = weights.layout.layers[0].down
    part = LowRank(
        weight=down.weight,
        left=torch.ones(down.out_features, 1),
        right=torch.ones(1, down.in_features),
    )
    return Delta(**{"method": "clumsy", "requests": batch.requests, "parts": [part], **changes})


def _raises_midway(model, batch, weights):
    model.train()
    model.requires_grad_(True)
    model.lm_head.register_forward_hook(lambda *_: None)
    with weights.temporarily(_delta(batch, weights).parts):
        raise ZeroDivisionError


def _leaves_all_lying_about(model, batch, weights):
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
        module.register_forward_pre_hook(lambda *_: None)
    model.lm_head.register_full_backward_hook(lambda *_: None)
    model.train()
    model.requires_grad_(True)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    return _delta(batch, weights)


def _writes_and_raises(model, batch, weights):
    weights.add(_delta(batch, weights))
    raise ZeroDivisionError


def test_a_method_that_raises_midway_leaves_the_model_as_it_was(
    edit_with, facts, plugins, state_of
):
    plugins.register(_clumsy(_raises_midway))
    editor = edit_with("clumsy")
    editor.edit(facts(1)[0], "writer")
    state = state_of(editor.model)
    with pytest.raises(ZeroDivisionError):
        editor.edit(facts(1, start=1)[0])
    assert state_of(editor.model) == state
    editor.undo()
    assert editor.deltas == ()


def test_hooks_modes_and_gradients_that_a_method_leaves_behind_are_cleared(
    edit_with, facts, plugins, state_of
):
    plugins.register(_clumsy(_leaves_all_lying_about))
    editor = edit_with("clumsy")
    model = editor.model
    mine = model.lm_head.register_forward_hook(lambda *_: None)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    state = state_of(model)
    editor.edit(facts(1)[0])
    editor.undo()
    assert state_of(model) == state
    mine.remove()
    assert state_of(model) != state


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_can_be_asked_for_during_an_edit_and_after_it(
    edit_with, facts, plugins, tokenizer, family
):
    module = ModuleType("asker")

    @hookimpl
    def method_info():
        return MethodInfo(name="asker", summary="fake", kind="weights")

    @hookimpl
    def compute_delta(model, tokenizer, batch, weights):
        ids = tokenizer(batch.requests[0].prompt, return_tensors="pt")
        hidden = model(**ids, output_hidden_states=True).hidden_states[1][0, -1]
        down = weights.layout.down_of(0)
        left, right = hidden.float()[:, None], torch.ones(1, down.in_features)
        part = LowRank(weight=down.weight, left=0.01 * left, right=right)
        return Delta(method="asker", requests=batch.requests, parts=[part])

    module.method_info, module.compute_delta = method_info, compute_delta
    plugins.register(module)
    editor = edit_with("asker", family)
    editor.edit(facts(1)[0])
    ids = tokenizer(facts(1)[0].prompt, return_tensors="pt")
    # transformers collects them by hooks that it hangs up once, inside the edit.
    assert len(editor.model(**ids, output_hidden_states=True).hidden_states) == 3
    editor.edit(facts(2)[1])


def test_weights_that_a_method_wrote_itself_go_with_its_failure(
    edit_with, facts, plugins, state_of
):
    plugins.register(_clumsy(_writes_and_raises))
    editor = edit_with("clumsy")
    kept = editor.edit(facts(1)[0], "writer")
    state = state_of(editor.model)
    with pytest.raises(ZeroDivisionError):
        editor.edit(facts(1, start=1)[0])
    assert state_of(editor.model) == state
    assert editor.deltas == (kept,)


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (lambda batch, weights: None, "NoneType"),
        (lambda batch, weights: [_delta(batch, weights)], "list"),
        (lambda batch, weights: _delta(batch, weights, method="other"), "'other'"),
        (lambda batch, weights: _delta(batch, weights, parts=[]), "changes nothing"),
        (
            lambda batch, weights: _delta(batch, weights, parts=[SideMemory(at="", tensors={})]),
            "side memory",
        ),
    ],
)
def test_what_is_no_delta_of_the_method_is_refused(
    edit_with, facts, plugins, state_of, returned, complaint
):
    plugins.register(_clumsy(lambda model, batch, weights: returned(batch, weights)))
    editor = edit_with("clumsy")
    state = state_of(editor.model)
    with pytest.raises(DeltaError, match=complaint):
        editor.edit(facts(1)[0])
    assert state_of(editor.model) == state
    assert editor.deltas == ()


def test_a_memory_that_cannot_be_attached_leaves_the_old_one_in(edit_with, facts, plugins, logits):
    editor = edit_with("memory")
    a, b = facts(2)
    first = editor.edit(a)
    said = logits(editor.model)
    broken = ModuleType("breaking")
    failures = iter([True])

    @hookimpl(wrapper=True)
    def apply_delta():
        if next(failures, False):
            raise ZeroDivisionError
        return (yield)

    broken.apply_delta = apply_delta
    plugins.register(broken)
    with pytest.raises(ZeroDivisionError):
        editor.edit(b)
    assert editor.deltas == (first,)
    assert torch.equal(logits(editor.model), said)


def test_an_edit_can_be_made_from_any_thread(edit_with, facts):
    editor = edit_with()
    made = []
    worker = threading.Thread(target=lambda: made.append(editor.edit(facts(1)[0])))
    worker.start()
    worker.join()
    assert made == list(editor.deltas)


def test_an_applied_delta_comes_out_at_the_end_of_its_block_and_only_once():
    taken = []
    with Applied(lambda: taken.append(1)) as applied:
        assert taken == []
    applied.undo()
    assert taken == [1]
