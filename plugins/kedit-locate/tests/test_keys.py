"""Keys: what the projection reads at the subject's last token, and on what that depends."""

import pytest
import torch

from kedit_core import Dense, EditRequest, Weights, layout_of
from kedit_locate.capture import inputs_of
from kedit_locate.keys import keys_of, mean_key
from kedit_locate.rows import Row, edit_rows, padded

PREFIXES = ("", "She was. ", "The Space Needle is in Seattle. ")


def plain_key(model, row, path):
    """Return what a module reads at the lookup token, from one whole forward of one row."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    model(input_ids=torch.tensor([row.ids]), use_cache=False)
    handle.remove()
    return seen[0].reshape(len(row.ids), -1)[row.lookup]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_keys_are_what_whole_forwards_show(model, tokenizer, fact, layer):
    down = layout_of(model).down_of(layer)
    rows = edit_rows(tokenizer, fact, PREFIXES).rewrites
    expected = torch.stack([plain_key(model, row, down.path) for row in rows])
    torch.testing.assert_close(keys_of(model, rows, down), expected, rtol=1e-11, atol=1e-12)


def test_text_after_the_subject_changes_no_key(model, tokenizer):
    down = layout_of(model).down_of(2)
    start = {"subject": "Danielle Darrieux", "target_new": "English"}
    first = EditRequest(prompt="The mother tongue of {} is", **start)
    second = EditRequest(
        prompt="The mother tongue of {}, who plays the violin in Rome, was", **start
    )
    keys = [
        keys_of(model, edit_rows(tokenizer, one, PREFIXES).rewrites, down)
        for one in (first, second)
    ]
    assert torch.equal(*keys)


def test_more_rows_than_one_forward_takes_come_out_in_order(model):
    down = layout_of(model).down_of(1)
    generator = torch.Generator().manual_seed(0)
    lengths = [1 + n % 7 for n in range(270)]
    drawn = [torch.randint(1, 300, (n,), generator=generator).tolist() for n in lengths]
    rows = [Row(ids=tuple(ids), lookup=len(ids) - 1) for ids in drawn]
    together = keys_of(model, rows, down)
    for place in (0, 6, 255, 256, 269):
        alone = keys_of(model, [rows[place]], down)[0]
        torch.testing.assert_close(together[place], alone, rtol=1e-11, atol=1e-12)


def test_the_key_of_a_layer_hangs_on_the_layers_below_it_only(model, tokenizer, fact):
    layout, weights = layout_of(model), Weights(model)
    rows = edit_rows(tokenizer, fact, PREFIXES).rewrites
    middle = layout.down_of(1)
    before = keys_of(model, rows, middle)
    for layer, changes in ((0, True), (1, False), (2, False)):
        down = layout.down_of(layer)
        update = 0.5 * torch.ones(down.out_features, down.in_features, dtype=torch.float64)
        update[::2] = -0.5
        with weights.temporarily([Dense(weight=down.weight, update=update)]):
            assert torch.equal(keys_of(model, rows, middle), before) != changes
    assert torch.equal(keys_of(model, rows, middle), before)


def test_the_mean_key_weighs_every_row_alike():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 2.0]])
    assert torch.equal(mean_key(keys), torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_keys_are_float32_unless_the_model_is_float64(tiny, tokenizer, fact, stored, given):
    model = tiny("llama", dtype=stored)
    rows = edit_rows(tokenizer, fact, PREFIXES).rewrites
    assert keys_of(model, rows, layout_of(model).down_of(0)).dtype == given


def test_looking_stops_at_the_last_module_and_leaves_no_hook(model):
    layout = layout_of(model)
    reached = []
    handle = model.get_submodule(layout.layers[2].path).register_forward_pre_hook(
        lambda *_: reached.append(2)
    )
    ids, mask = padded([[5, 6, 7], [8]], "cpu")
    paths = [layout.down_of(0).path, layout.down_of(1).path]
    seen = inputs_of(model, paths, ids, mask)
    handle.remove()
    assert not reached
    assert {path: tuple(one.shape) for path, one in seen.items()} == dict.fromkeys(
        paths, (2, 3, 24)
    )
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_looking_leaves_no_hook_when_the_forward_fails(model):
    path = layout_of(model).down_of(1).path
    with pytest.raises(IndexError):
        inputs_of(model, [path], torch.tensor([[5, 4000]]), torch.ones(1, 2, dtype=torch.long))
    assert not any(module._forward_pre_hooks for module in model.modules())
