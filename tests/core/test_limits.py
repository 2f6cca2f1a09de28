"""Limits: a governor finds what edits have cost a model, and says it in one sentence."""

import math
from types import ModuleType

import pytest
import torch
from attrs import evolve

from kedit_core import Editor, hookimpl
from kedit_core.config import as_mapping, load_config
from kedit_core.digests import state_digest
from kedit_core.errors import ConfigError, ModelError
from kedit_core.limits import Breach, Governor, Limits
from kedit_core.testing import edit_of, facts, trained_model


@pytest.fixture
def observed(plugins):
    """Return what evaluators are asked for, call by call."""
    module, asked = ModuleType("observer"), []

    @hookimpl
    def evaluate(metrics):
        asked.append(dict(metrics))

    module.evaluate = evaluate
    plugins.register(module)
    return asked


@pytest.fixture
def editor(request, plugins):
    kept = request.config.cache.mkdir("kedit")
    model, tokenizer = trained_model("llama", cache_folder=kept)
    return Editor(model, tokenizer, "writer", plugins=plugins)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "held-out.txt"
    file.write_text(" ".join(f"{one.prompts[0]} {one.answer}." for one in facts()))
    return str(file)


def known(count=10):
    """Return requests for what the trained model says already: they hold until something breaks it."""
    return [evolve(edit_of(one), target_new=one.answer) for one in facts()[:: 40 // count]]


def harm(editor, scale=3.0):
    return editor.edit(edit_of(facts()[5]), config={"scale": scale})


def all_limits(text, **changes):
    plain = {"perplexity": 1.5, "locality": 0.3, "retention": 0.7, "drift": 0.1}
    return Limits(text=text, **{**plain, **changes})


# Limits as they are given


def test_limits_come_from_a_table_and_go_back_into_one(tmp_path):
    file = tmp_path / "limits.toml"
    file.write_text(
        'perplexity = 2\ntext = "held-out.txt"\nlocality = 0.1\nretention = 0.9\ndrift = 0.5\n'
        'every = 10\naction = "stop"\n'
    )
    found = load_config(Limits, file)
    assert found == Limits(
        perplexity=2.0,
        text="held-out.txt",
        locality=0.1,
        retention=0.9,
        drift=0.5,
        every=10,
        action="stop",
    )
    assert load_config(Limits, as_mapping(found)) == found
    assert load_config(Limits, {}) == Limits()
    assert (Limits().every, Limits().action) == (100, "rollback")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"perplexity": 1.2}, "perplexity needs a held-out text"),
        ({"text": "a.txt"}, "give perplexity a limit too"),
        ({"text": ""}, "text must be the path of a file"),
        ({"perplexity": 0.9, "text": "a.txt"}, "perplexity must be 1 or more"),
        ({"perplexity": math.nan, "text": "a.txt"}, "perplexity must be 1 or more"),
        ({"locality": 10}, "locality must be a share from 0 to 1"),
        ({"retention": -0.1}, "retention must be a share from 0 to 1"),
        ({"drift": math.inf}, "drift must be a number from 0 on"),
        ({"every": 0}, "every must be a whole number from 1 on"),
        ({"action": "explode"}, "explode"),
    ],
)
def test_a_limit_out_of_range_is_refused_with_its_name_in_python_and_from_a_file(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Limits(**given)
    with pytest.raises(ConfigError, match=complaint):
        load_config(Limits, given, where="limits")


def test_a_text_that_is_not_there_is_said_before_the_first_edit(editor):
    with pytest.raises(ConfigError, match="there is no file nowhere"):
        Governor(Limits(perplexity=1.5, text="nowhere.txt"), editor)


# What the governor finds


def test_a_good_model_breaks_no_limit_a_harmed_one_breaks_all_and_undo_makes_it_good(editor, text):
    governor = Governor(all_limits(text), editor)
    requests = known()
    assert governor.check(requests, at=0, since=0) == ()
    harm(editor)
    before = state_digest(editor.model)
    found = {one.limit: one for one in governor.check(requests, at=120, since=100)}
    assert list(found) == ["perplexity", "locality", "retention", "drift"]
    assert {(one.at, one.since) for one in found.values()} == {(120, 100)}
    assert found["perplexity"].found > found["perplexity"].allowed == 1.5
    assert found["retention"].found < found["retention"].allowed == 0.7
    assert 0.3 < found["locality"].found <= 1
    assert state_digest(editor.model) == before
    editor.undo()
    assert governor.check(requests, at=120, since=100) == ()


def test_what_is_found_is_what_the_metrics_say(editor, text):
    harm(editor)
    requests = known()
    (perplexity, locality, retention, drift) = Governor(all_limits(text), editor).check(
        requests, at=1, since=0
    )
    asked = {"reliability.exact": {}, "locality.exact": {"known": True}, "drift": {}}
    means = editor.evaluate(requests, {**asked, "perplexity": {"text": text}}).means()
    with editor.original():
        start = editor.evaluate((), {"perplexity": {"text": text}}).means()["perplexity"]
    assert perplexity.found == means["perplexity"] / start
    assert locality.found == 1 - means["locality.exact"]
    assert retention.found == means["reliability.exact"]
    assert drift.found == means["drift"]


def test_the_start_is_the_unedited_model_even_when_edits_came_before_the_governor(editor, text):
    harm(editor)
    governor = Governor(Limits(perplexity=1.5, text=text), editor)
    (breach,) = governor.check(known(), at=1, since=0)
    assert breach.limit == "perplexity"


@pytest.mark.parametrize(
    ("limits", "metrics"),
    [
        ({}, set()),
        ({"retention": 0.5}, {"reliability.exact"}),
        ({"locality": 0.5}, {"locality.exact"}),
        ({"drift": 0.5}, {"drift"}),
        ({"drift": 0.5, "retention": 0.5}, {"drift", "reliability.exact"}),
    ],
)
def test_only_what_the_limits_need_is_measured(editor, observed, limits, metrics):
    Governor(Limits(**limits), editor).check(known(), at=1, since=0)
    asked = {name for call in observed for name in call}
    assert asked - {"reliability.probability"} == metrics


def test_the_start_is_measured_once(editor, observed, text):
    governor = Governor(Limits(perplexity=1.5, text=text), editor)
    assert observed == []
    for at in (100, 200, 300):
        governor.check(known(), at=at, since=0)
    assert sum("perplexity" in call for call in observed) == 1 + 3


def test_a_value_right_at_its_limit_is_allowed(editor):
    requests = known()
    wrong = [edit_of(one) for one in facts()[1:4]]
    limits = Limits(retention=0.7)
    assert Governor(limits, editor).check([*requests[:7], *wrong], at=10, since=0) == ()
    (breach,) = Governor(limits, editor).check([*requests[:6], *wrong], at=9, since=0)
    assert breach.found == pytest.approx(6 / 9)


def test_locality_counts_only_what_the_unedited_model_gets_right(editor):
    request = known()[0]
    never_known = evolve(
        request, locality=[evolve(one, answers=("nonsense",)) for one in request.locality]
    )
    assert Governor(Limits(locality=0.0), editor).check([never_known], at=1, since=0) == ()


def test_a_locality_limit_that_nothing_can_be_measured_for_is_said_once(editor, caplog):
    governor = Governor(Limits(locality=0.1), editor)
    bare = [evolve(one, locality=()) for one in known()]
    for at in (10, 20):
        assert governor.check(bare, at=at, since=0) == ()
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "limit locality" in caplog.text


# Values that are not finite


def poison(editor, value):
    """Make the last block say ``value`` for good, as an edit of another kind could."""
    editor.edit(edit_of(facts()[5]), "memory", {"scale": value})


@pytest.mark.parametrize("limits", [{}, {"retention": 0.5}])
def test_without_any_limit_logits_that_are_not_finite_are_a_breach(editor, limits):
    governor = Governor(Limits(**limits), editor)
    poison(editor, math.nan)
    (breach,) = governor.check(known(), at=7, since=6)
    assert (breach.limit, breach.at, breach.since) == ("finite", 7, 6)
    assert not math.isfinite(breach.found)
    editor.undo()
    assert governor.check(known(), at=7, since=6) == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_edited_weights_that_are_not_finite_are_a_breach(editor, value):
    delta = harm(editor)
    with torch.no_grad():
        editor.model.get_parameter(delta.parts[0].weight)[0, 0] = value
    (breach,) = Governor(Limits(), editor).check((), at=1, since=0)
    assert breach.limit == "finite"


def test_a_perplexity_beyond_all_numbers_is_not_finite(editor, text):
    editor.edit(edit_of(facts()[5]), config={"scale": 1e4})
    with torch.no_grad():  # so sure of what is wrong that exp overflows
        editor.model.lm_head.weight.mul_(1e6)
    (breach,) = Governor(Limits(perplexity=1.5, text=text), editor).check((), at=1, since=0)
    assert (breach.limit, breach.found) == ("finite", math.inf)


def test_a_model_that_is_broken_before_any_edit_has_no_start(editor, text):
    weight = editor.weights.layout.down_of(0).weight
    parameter = editor.model.get_parameter(weight)
    unedited = parameter.detach().clone()
    editor.model.lm_head.register_forward_hook(
        lambda _, __, logits: logits * (1e6 if torch.equal(parameter, unedited) else 1)
    )
    harm(editor)
    with pytest.raises(ModelError, match="before any edit"):
        Governor(Limits(perplexity=1.5, text=text), editor).check((), at=1, since=0)


def test_with_no_edits_so_far_there_is_nothing_to_break(editor):
    assert (
        Governor(Limits(retention=1.0, locality=0.0, drift=0.0), editor).check((), at=0, since=0)
        == ()
    )


# The sentence


@pytest.mark.parametrize(
    ("breach", "sentence"),
    [
        (
            Breach(limit="perplexity", allowed=1.2, found=1.6123, at=120, since=100),
            (
                "after 120 edits perplexity is 1.61 times the start, more than the 1.2 allowed; "
                "the model was last found good after 100"
            ),
        ),
        (
            Breach(limit="perplexity", allowed=1.2, found=1.20004, at=120, since=100),
            (
                "after 120 edits perplexity is 1.20004 times the start, more than the 1.2 allowed; "
                "the model was last found good after 100"
            ),
        ),
        (
            Breach(limit="retention", allowed=0.9, found=0.5, at=10, since=0),
            (
                "after 10 edits 0.5 of the edits still hold, less than the 0.9 asked for; "
                "the model was last found good before the first of them"
            ),
        ),
        (
            Breach(limit="locality", allowed=0.1, found=0.25, at=1, since=0),
            (
                "after 1 edit 0.25 of what the model knew beside the edits is lost, more than the 0.1 "
                "allowed; the model was last found good before the first of them"
            ),
        ),
        (
            Breach(limit="drift", allowed=0.1, found=2.0, at=3, since=2),
            (
                "after 3 edits the edited weights have grown by 2 of their norm, more than the 0.1 "
                "allowed; the model was last found good after 2"
            ),
        ),
        (
            Breach(limit="finite", allowed=0.0, found=math.nan, at=3, since=2),
            (
                "after 3 edits the model has values that are not finite (nan); the model was last found "
                "good after 2"
            ),
        ),
    ],
)
def test_a_breach_says_what_was_found_what_was_allowed_and_what_was_good(breach, sentence):
    assert str(breach) == sentence
