"""ROME's update against the paper's formulas, recomputed here from plain forwards."""

import pytest
import torch

from kedit_core import Editor, EditRequest, KeditError, TensorCache, layout_of
from kedit_core.digests import state_digest
from kedit_core.progress import Progress
from kedit_locate.config import Search, Statistics
from kedit_locate.moments import moments
from kedit_locate.rows import edit_rows
from kedit_locate.values import search_values
from kedit_rome.config import RomeConfig

LAYER = 1
SEARCH = {"steps": 6, "lr": 0.1, "clamp": 4.0, "stop": 0.0}
TEXT = {"tokens": 600, "length": 16}


def settings(**changes):
    return {
        "layer": LAYER,
        "keys": "mean",
        "search": SEARCH,
        "statistics": TEXT,
        "context": {"lengths": [3, 5], "count": 2},
        **changes,
    }


def edited(model, tokenizer, request, **changes):
    """Return an editor with the one edit in force, and its delta."""
    editor = Editor(model, tokenizer, "rome", settings(**changes))
    return editor, editor.edit(request)


def read_by(model, path, row):
    """Return what a module reads and writes at a row's lookup token, from one plain forward."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _, args, output: seen.append((args[0], output))
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]), use_cache=False)
    handle.remove()
    read, written = (one.reshape(len(row.ids), -1)[row.lookup].detach() for one in seen[0])
    return read, written


def told(editor, delta, request):
    """Return rows, keys, value and moment as the unedited model and the delta's notes give them."""
    model, down = editor.model, layout_of(editor.model).down_of(LAYER)
    rows = edit_rows(editor.tokenizer, request, delta.provenance.notes["prefixes"])
    with editor.original():
        keys = torch.stack([read_by(model, down.path, row)[0] for row in rows.rewrites])
        value = search_values(model, [rows], down.path, Search(**SEARCH), Progress()).value[0]
        (moment,) = moments(
            model,
            editor.tokenizer,
            [down],
            Statistics(**TEXT),
            editor.weights,
            TensorCache(),
            Progress(),
        )
        before = matrix_of(model, down)
    return rows, keys, value, moment.matrix.double(), before


def matrix_of(model, down):
    weight = model.get_parameter(down.weight).detach()
    return (weight.T if down.conv1d else weight).clone()


def bias_of(model, down):
    bias = model.get_submodule(down.path).bias
    return torch.zeros(down.out_features, dtype=torch.float64) if bias is None else bias.detach()


def update_in(delta):
    (part,) = delta.parts
    return part.left @ part.right


def test_the_edited_projection_writes_the_value_for_the_mean_key(model, tokenizer, fact):
    editor, delta = edited(model, tokenizer, fact)
    down = layout_of(model).down_of(LAYER)
    _, keys, value, _, before = told(editor, delta, fact)
    assert len(keys) == 5
    written = matrix_of(model, down) @ keys.mean(0) + bias_of(model, down)
    torch.testing.assert_close(written, value, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(matrix_of(model, down), before + update_in(delta))
    assert not torch.allclose(before @ keys.mean(0) + bias_of(model, down), value)


def test_the_update_is_the_formula_of_the_paper_with_r_romes_keys(model, tokenizer, fact):
    editor, delta = edited(model, tokenizer, fact)
    down = layout_of(model).down_of(LAYER)
    _, keys, value, moment, before = told(editor, delta, fact)
    key = keys.mean(0)
    direction = torch.linalg.solve(moment, key)
    residual = value - before @ key - bias_of(model, down)
    expected = torch.outer(residual, direction) / (key @ direction)
    torch.testing.assert_close(update_in(delta), expected, rtol=1e-7, atol=1e-9)


def test_bare_keys_give_the_formula_of_the_original(model, tokenizer, fact):
    editor, delta = edited(model, tokenizer, fact, keys="bare")
    down = layout_of(model).down_of(LAYER)
    rows, keys, value, moment, before = told(editor, delta, fact)
    u = torch.linalg.solve(moment, keys.mean(0))
    u = u / u.norm()
    with editor.original():
        bare, written = read_by(model, down.path, rows.rewrites[0])
    expected = torch.outer((value - written) / (bare @ u), u)
    torch.testing.assert_close(update_in(delta), expected, rtol=1e-7, atol=1e-9)
    after = matrix_of(model, down)
    bias = bias_of(model, down)
    torch.testing.assert_close(after @ bare + bias, value, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(after @ keys.mean(0) + bias, value, rtol=1e-3)
    assert not torch.allclose(before, after)


def test_by_default_the_shift_is_written_at_the_mean_key_and_where_a_text_begins_with_the_subject(
    model, tokenizer, fact
):
    editor, delta = edited(model, tokenizer, fact, keys="both")
    down = layout_of(model).down_of(LAYER)
    rows, keys, value, moment, before = told(editor, delta, fact)
    with editor.original():
        start, _ = read_by(model, down.path, rows.anchor)
        _, base = read_by(model, down.path, rows.rewrites[0])
    shift = value - base
    both = torch.stack([keys.mean(0), start], dim=1)  # (in_features, 2)
    for key in both.T:
        torch.testing.assert_close(update_in(delta) @ key, shift, rtol=1e-8, atol=1e-9)
    whitened = torch.linalg.solve(moment, both)
    share = torch.linalg.solve(both.T @ whitened, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(
        update_in(delta), torch.outer(shift, whitened @ share), rtol=1e-6, atol=1e-8
    )
    assert RomeConfig().keys == "both"
    assert torch.linalg.matrix_rank(matrix_of(model, down) - before, tol=1e-9) == 1


def test_the_identity_metric_spreads_the_update_along_the_key_itself(model, tokenizer, fact):
    editor, delta = edited(model, tokenizer, fact, statistics={**TEXT, "metric": "identity"})
    _, keys, *_ = told(editor, delta, fact)
    right = delta.parts[0].right[0]
    torch.testing.assert_close(right, keys.mean(0) / (keys.mean(0) @ keys.mean(0)))
    assert delta.provenance.notes["ridge"] == 0


@pytest.mark.parametrize("keys", ["mean", "bare"])
@pytest.mark.parametrize("inner", [24, 16], ids=["oblong", "square"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_the_bare_prompt_only_a_forward_writes_the_value(
    tiny, tokenizer, fact, family, inner, keys
):
    model = tiny(family, inner=inner)
    editor, delta = edited(model, tokenizer, fact, context={"count": 0}, keys=keys)
    assert delta.provenance.notes["prefixes"] == [""]
    rows, _, value, _, before = told(editor, delta, fact)
    assert before.shape == (16, inner)
    written = read_by(model, layout_of(model).down_of(LAYER).path, rows.rewrites[0])[1]
    torch.testing.assert_close(written, value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("inner", [24, 16], ids=["oblong", "square"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_where_no_other_token_is_heard_a_forward_has_the_loss_of_the_search(
    tiny, tokenizer, family, inner
):
    # An edited matrix answers every token's key a little. Only in the last layer, with the target
    # predicted where the value is written, is that the whole difference.
    model = tiny(family, inner=inner)
    request = EditRequest(prompt="We hear of {}", subject="Toko Yasuda", target_new="the")
    editor, delta = edited(model, tokenizer, request, context={"count": 0}, layer=2)
    (row,) = edit_rows(tokenizer, request, [""]).rewrites
    (token,) = row.target
    told_nll = delta.provenance.notes["target_nll"]
    said = model(input_ids=torch.tensor([row.ids])).logits[0, -1].log_softmax(-1)
    assert -said[token].item() == pytest.approx(told_nll, rel=1e-9)
    with editor.original():
        unsure = model(input_ids=torch.tensor([row.ids])).logits[0, -1].log_softmax(-1)
    assert -unsure[token].item() > told_nll + 0.3


def test_in_a_chat_the_value_is_written_at_the_subject_of_the_rendered_prompt(
    model, tokenizer, fact, monkeypatch
):
    template = "{% for m in messages %}<u> {{ m['content'] }} </u>{% endfor %}<a>"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    editor = Editor(model, tokenizer, "rome", settings(context={"count": 0}), chat=True)
    assert editor.edit(fact).provenance.chat
    rows = edit_rows(tokenizer, fact, [""], chat=True)
    path = layout_of(model).down_of(LAYER).path
    assert tokenizer.decode(rows.rewrites[0].prompt).startswith("<u> ")
    with editor.original():
        value = search_values(model, [rows], path, Search(**SEARCH), Progress()).value[0]
    written = read_by(model, path, rows.rewrites[0])[1]
    torch.testing.assert_close(written, value, rtol=1e-9, atol=1e-10)


def test_linear_and_conv1d_holding_the_transpose_are_edited_alike(tiny, tokenizer, fact):
    first, second = tiny("gpt2", inner=16), tiny("gpt2", inner=16)
    for block in second.transformer.h:
        old = block.mlp.c_proj
        new = torch.nn.Linear(16, 16, dtype=torch.float64)
        new.weight.data, new.bias.data = old.weight.data.T.clone(), old.bias.data.clone()
        block.mlp.c_proj = new
    second.requires_grad_(False)
    deltas = [edited(model, tokenizer, fact)[1] for model in (first, second)]
    torch.testing.assert_close(update_in(deltas[0]), update_in(deltas[1]), rtol=1e-7, atol=1e-9)
    ids = torch.tensor([tokenizer(fact.prompt)["input_ids"]])
    torch.testing.assert_close(first(ids).logits, second(ids).logits, rtol=1e-7, atol=1e-9)


def test_a_second_edit_sees_the_first_but_measures_with_the_original(model, tokenizer, fact):
    editor, first = edited(model, tokenizer, fact)
    other = EditRequest(
        prompt="{} is in the city of", subject="The Eiffel Tower", target_new="Oslo"
    )
    second = editor.edit(other)
    assert len(TensorCache().keys("moments")) == len(TensorCache().keys("prefixes")) == 1
    assert second.provenance.notes["prefixes"] == first.provenance.notes["prefixes"]
    editor.undo(second.id)
    editor.undo(first.id)
    alone = editor.edit(other)
    assert alone.id != second.id  # its value was searched for in another model
    ratio = second.parts[0].right / alone.parts[0].right
    torch.testing.assert_close(ratio, torch.ones_like(ratio))  # same layer: same key, same metric


def test_equal_seeds_give_equal_deltas_and_another_seed_another(model, tokenizer, fact, tmp_path):
    def computed(seed, folder):
        editor = Editor(
            model, tokenizer, "rome", settings(seed=seed), cache=TensorCache(tmp_path / folder)
        )
        delta = editor.edit(fact)
        editor.undo()
        editor.close()
        return delta

    first = computed(3, "one")
    assert computed(3, "two").id == first.id
    assert computed(4, "three").id != first.id
    assert first.provenance.seed == 3


class BrokenOffError(Exception):
    pass


class Breaking(Progress):
    """Breaks off in the task of a name."""

    def __init__(self, name):
        self.name = name

    def task(self, description, total, unit=""):
        if description == self.name:
            raise BrokenOffError
        return super().task(description, total, unit)


def condition(model):
    hooks = [
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    modes = [module.training for module in model.modules()]
    gradients = [(one.requires_grad, one.grad is None) for one in model.parameters()]
    return state_digest(model), hooks, modes, gradients


@pytest.mark.parametrize(
    "ends_in", ["sampling text for statistics", "collecting second moments", "searching values"]
)
def test_an_edit_that_breaks_off_leaves_the_model_as_it_was(model, tokenizer, fact, ends_in):
    model.train().requires_grad_(True)
    before = condition(model)
    editor = Editor(model, tokenizer, "rome", settings(), progress=Breaking(ends_in))
    with pytest.raises(BrokenOffError):
        editor.edit(fact)
    assert condition(model) == before
    assert not editor.deltas


def test_computing_and_undoing_leave_the_model_as_it_was(model, tokenizer, fact):
    model.train().requires_grad_(True)
    before = condition(model)
    editor, delta = edited(model, tokenizer, fact)
    assert condition(model)[1:] == before[1:]
    assert condition(model)[0] != before[0]
    editor.undo(delta.id)
    assert condition(model) == before


def test_only_the_chosen_layer_changes(model, tokenizer, fact):
    before = {name: one.clone() for name, one in model.state_dict().items()}
    edited(model, tokenizer, fact)
    changed = [
        name for name, one in model.state_dict().items() if not torch.equal(one, before[name])
    ]
    assert changed == [layout_of(model).down_of(LAYER).weight]


def test_without_a_layer_one_about_a_sixth_of_the_way_up_is_edited(tiny, tokenizer, fact):
    for layers, expected in ((3, 0), (7, 1), (13, 2)):
        _, delta = edited(tiny("gpt2", layers=layers), tokenizer, fact, layer=None)
        assert delta.provenance.notes["layer"] == expected


def test_a_layer_that_is_not_there_is_refused_and_nothing_changes(model, tokenizer, fact):
    before = condition(model)
    with pytest.raises(KeditError, match="layers 0 to 2"):
        edited(model, tokenizer, fact, layer=9)
    assert condition(model) == before


def test_a_subject_at_the_very_start_can_be_edited(model, tokenizer):
    request = EditRequest(prompt="{} is in", subject="She", target_new="Rome, the city")
    editor, delta = edited(model, tokenizer, request, context={"count": 0})
    _, keys, value, _, _ = told(editor, delta, request)
    down = layout_of(model).down_of(LAYER)
    written = matrix_of(model, down) @ keys[0] + bias_of(model, down)
    torch.testing.assert_close(written, value, rtol=1e-9, atol=1e-10)


def test_a_model_whose_numbers_overflow_is_refused_and_left_alone(model, tokenizer, fact):
    weight = layout_of(model).down_of(2).weight
    with torch.no_grad():
        model.get_parameter(weight)[0, 0] = float("inf")
    before = condition(model)
    with pytest.raises(KeditError, match="not finite"):
        edited(model, tokenizer, fact, context={"count": 0}, statistics={"metric": "identity"})
    assert condition(model) == before
