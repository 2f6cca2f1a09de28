"""Core puts the model back after every hook, and refuses deltas that are not what they say."""

import pytest
import torch
from attrs import evolve

from kedit_core import Editor, EditRequest, TensorCache, hookimpl
from kedit_core.errors import DeltaError
from kedit_core.testing import edit_of, facts, trained_model
from kedit_core.untouched import same_settings
from tests.core import bad_methods

FIRST, SECOND = (edit_of(fact) for fact in facts()[:2])


@pytest.fixture
def editor_with(request, tmp_path):
    """Return what makes an editor of a model that knows facts, with one plugin."""

    def make(module):
        model, tokenizer = trained_model("llama", cache_folder=request.config.cache.mkdir("kedit"))
        plugins, cache = bad_methods.only(module), TensorCache(tmp_path / "cache")
        return Editor(model, tokenizer, module.method_info().name, plugins=plugins, cache=cache)

    return make


def settings_of(model):
    return model.config.to_dict(), model.generation_config.to_dict()


def leave_settings(model, *_):
    model.config.use_cache = False
    model.config.mine = {"a": 1}
    model.config.rope_parameters["rope_theta"] = 5.0
    del model.config.tie_word_embeddings
    model.generation_config.max_length = 3


def leave_settings_and_fail(model, *_):
    leave_settings(model)
    raise ValueError("in the middle")


def test_settings_that_a_method_writes_are_put_back(editor_with):
    editor = editor_with(bad_methods.writer(bad_methods._after(bad_methods.write, leave_settings)))
    before = settings_of(editor.model)
    editor.edit(FIRST)
    assert settings_of(editor.model) == before


def test_settings_are_put_back_when_the_method_raises(editor_with):
    editor = editor_with(bad_methods.writer(leave_settings_and_fail))
    before = settings_of(editor.model)
    with pytest.raises(ValueError, match="in the middle"):
        editor.edit(FIRST)
    assert settings_of(editor.model) == before


def test_settings_that_nobody_writes_stay_the_same_objects(editor_with):
    model = editor_with(bad_methods.writer()).model
    held = dict(vars(model.config))
    with same_settings(model):
        pass
    assert all(vars(model.config)[name] is one for name, one in held.items())


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def test_what_asking_for_the_scope_leaves_in_the_model_is_taken_away(editor_with):
    def leave_hook(model, *_):
        model.register_forward_hook(lambda *_: None)
        model.config.use_cache = False
        model.train()

    scope = bad_methods._after(bad_methods.classify, leave_hook)
    editor = editor_with(bad_methods.memory(scope=scope))
    editor.edit(FIRST)
    before, hooks = settings_of(editor.model), hooks_of(editor.model)
    assert editor.scope(FIRST.prompt).requests == (FIRST.id,)
    assert (settings_of(editor.model), hooks_of(editor.model)) == (before, hooks)
    assert not editor.model.training
    assert len(hooks) == 1  # the memory's own
    editor.undo()
    assert hooks_of(editor.model) == []


def test_what_judging_leaves_in_the_model_is_taken_away(editor_with):
    module = bad_methods.memory()

    @hookimpl
    def evaluate(model, baseline):
        baseline.value("said", lambda model: model(torch.tensor([[1]])).logits)
        model.register_forward_hook(lambda *_: None)
        return []

    module.evaluate = evaluate
    editor = editor_with(module)
    editor.edit(FIRST)
    hooks = len(hooks_of(editor.model))
    editor.evaluate(FIRST)
    assert len(hooks_of(editor.model)) == hooks
    editor.undo()
    assert hooks_of(editor.model) == []


@pytest.mark.parametrize("requests", [(), (SECOND,), (FIRST, SECOND)])
def test_a_delta_of_other_requests_than_asked_is_refused(editor_with, requests):
    def of_others(*given):
        return evolve(bad_methods.remember(*given), requests=requests)

    editor = editor_with(bad_methods.memory(of_others))
    with pytest.raises(DeltaError, match=r"a delta of the requests .* and was asked for"):
        editor.edit(FIRST)
    assert editor.deltas == ()


def test_a_memory_may_name_its_new_requests_or_all_that_it_holds(editor_with):
    def of_all(model, tokenizer, batch, config, previous):
        held = previous[-1].requests if previous else ()
        found = bad_methods.remember(model, tokenizer, batch, config, previous)
        return evolve(found, requests=(*held, *batch.requests))

    for compute in (bad_methods.remember, of_all):
        editor = editor_with(bad_methods.memory(compute))
        editor.edit(FIRST)
        assert [one.id for one in editor.edit(SECOND).requests] == [FIRST.id, SECOND.id]


def test_a_delta_that_changes_while_it_is_applied_is_refused(editor_with):
    editor = editor_with(bad_methods.memory(apply=bad_methods.normalised))
    with pytest.raises(DeltaError, match="method 'memory' changed it while applying it"):
        editor.edit(FIRST)
    assert (editor.deltas, hooks_of(editor.model)) == ((), [])


def test_a_method_that_writes_to_its_settings_fails_and_leaves_nothing(editor_with):
    def marking(model, delta):
        delta.parts[0].settings["applied"] = True

    editor = editor_with(bad_methods.memory(apply=marking))
    with pytest.raises(TypeError, match="read-only"):
        editor.edit(EditRequest(prompt=FIRST.prompt, target_new="Oslo"))
    assert editor.deltas == ()
