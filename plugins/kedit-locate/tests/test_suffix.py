"""A model from a layer and a token on, against whole forwards without cache, family by family."""

import gc
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kedit_core import layout_of
from kedit_core.reading import reach_past_pads
from kedit_core.untouched import attachments
from kedit_locate.capture import replaced_output
from kedit_locate.lower import blocks_below, remembering, skipped
from kedit_locate.picking import last_mlp
from kedit_locate.suffix import enter, read_suffix, rows_of, run

OLD = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64}
NEW = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 4}
GROUPED = {**NEW, "num_key_value_heads": 2, "intermediate_size": 24}
FAMILIES = {
    "gpt2": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "gemma2": {**GROUPED, "sliding_window": 6},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
    "mistral": {**GROUPED, "sliding_window": 6},
    "bloom": {"hidden_size": 16, "n_layer": 4, "n_head": 2},
}
# Some compute their norms, positions or attention in float32, whatever the model's dtype.
CLOSE = dict.fromkeys(FAMILIES, 1e-10) | dict.fromkeys(
    ("gptj", "llama", "qwen2", "mistral", "gemma2", "bloom"), 1e-6
)
# The others attend by code of their own, through a window, or softcap what they say.
DIRECT = ("gpt2", "llama", "qwen2")
BOUNDED = ("gemma2",)
ROWS = ([3, 9, 27, 4, 12, 36, 8, 24, 2], [5, 25, 45, 35, 15, 6, 11, 21], [7, 1, 2, 3, 9, 19, 29])


def opened(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=64, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3 / parameter.std())
    return model.double().eval().requires_grad_(False)


def starts_of(model):
    return (5, 5, 5) if reach_past_pads(model) < 16 else (5, 3, 1)


def adding(shift, starts_at):
    def change(hidden):
        where = torch.zeros_like(hidden)
        for row, at in enumerate(starts_at):
            where[row, at] = 1
        return hidden + where * shift

    return change


def from_whole_forwards(model, sites, starts, shifts):
    """Return the last tokens' log-probabilities, one whole forward a row without cache or pads."""
    said = []
    for ids, start in zip(ROWS, starts, strict=True):
        with ExitStack() as stack:
            for site, shift in zip(sites, shifts, strict=True):
                stack.enter_context(replaced_output(model, site, adding(shift, [start])))
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        said += [logits[start].log_softmax(-1), logits[-1].log_softmax(-1)]
    return torch.stack(said)


def picked(starts):
    lengths = [len(ids) - start for ids, start in zip(ROWS, starts, strict=True)]
    row = torch.tensor([row for row in range(len(ROWS)) for _ in range(2)])
    return row, torch.tensor([place for length in lengths for place in (0, length - 1)])


def from_suffix(model, suffix, sites, starts, shifts):
    with ExitStack() as stack:
        for site, shift in zip(sites, shifts, strict=True):
            stack.enter_context(replaced_output(model, site, adding(shift, [0] * len(ROWS))))
        return run(model, suffix, *picked(starts)).log_softmax(-1)


def loss_and_gradients(said, shifts):
    loss = (said[:, 7] * torch.arange(1.0, len(said) + 1, dtype=said.dtype)).sum()
    return loss.detach(), torch.autograd.grad(loss, shifts)


def sites_of(model, kind, layer=1):
    pieces = layout_of(model).layer(layer)
    both = [pieces.attention_out.path, pieces.down.path]
    return {"mlp": both[1:], "block": [pieces.path], "two sites": both}[kind]


def some_shifts(sites):
    torch.manual_seed(1)
    return [torch.randn(16, dtype=torch.float64).requires_grad_() for _ in sites]


@pytest.mark.parametrize("kind", ["mlp", "block", "two sites"])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_layer_on_loss_and_gradient_are_those_of_whole_forwards(family, kind):
    model = opened(family)
    sites, starts = sites_of(model, kind), starts_of(model)
    shifts, before = some_shifts(sites), attachments(model)
    suffix = read_suffix(model, ROWS, starts)
    blocks, narrow = blocks_below(model, sites), last_mlp(model, sites)
    assert len(blocks) == (2 if kind == "block" else 1)
    assert narrow is not None
    entered = enter(model, suffix, blocks, *picked(starts), narrow=narrow)
    assert not entered.refusal
    assert entered.suffix.lower.blocks == blocks
    assert entered.suffix.direct == (set(range(4)) if family in DIRECT else set())
    assert (entered.suffix.head is None) == (family in BOUNDED)
    loss, gradients = loss_and_gradients(
        from_suffix(model, entered.suffix, sites, starts, shifts), shifts
    )
    whole, expected = loss_and_gradients(from_whole_forwards(model, sites, starts, shifts), shifts)
    plain, same = loss_and_gradients(from_suffix(model, suffix, sites, starts, shifts), shifts)
    assert float(loss) == pytest.approx(float(plain), rel=1e-10)
    assert float(loss) == pytest.approx(float(whole), rel=CLOSE[family])
    for own, one, other in zip(gradients, expected, same, strict=True):
        assert bool(own.any())
        torch.testing.assert_close(own, other, rtol=CLOSE[family], atol=1e-9)
        torch.testing.assert_close(own, one, rtol=CLOSE[family], atol=10 * CLOSE[family])
    assert attachments(model) == before


@pytest.mark.parametrize("family", ["gptj", "falcon"])
def test_where_attention_and_mlp_are_parallel_both_shifts_have_one_gradient(family):
    model = opened(family)
    assert layout_of(model).parallel
    sites, starts = sites_of(model, "two sites"), starts_of(model)
    shifts = some_shifts(sites)
    entered = enter(
        model, read_suffix(model, ROWS, starts), blocks_below(model, sites), *picked(starts)
    )
    said = from_suffix(model, entered.suffix, sites, starts, shifts)
    _, (first, second) = loss_and_gradients(said, shifts)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_layers_compute_nothing_and_their_hooks_run_still(family):
    model = opened(family)
    sites, starts = sites_of(model, "mlp", layer=2), starts_of(model)
    ran = []
    for index in (0, 1, 2):
        layer = layout_of(model).layer(index)
        model.get_submodule(layer.path).register_forward_hook(
            lambda *_, index=index: ran.append(f"block {index}")
        )
        model.get_submodule(layer.down.path).register_forward_hook(
            lambda *_, index=index: ran.append(f"mlp {index}")
        )
    suffix = read_suffix(model, ROWS, starts)
    entered = enter(model, suffix, blocks_below(model, sites), *picked(starts))
    ran.clear()
    run(model, entered.suffix, *picked(starts))
    assert ran == ["block 0", "block 1", "mlp 2", "block 2"]


def test_a_hook_of_a_skipped_block_changes_what_it_returns_once():
    model = opened("gpt2")
    model.transformer.h[1].register_forward_hook(lambda _, __, output: output * 1.5)
    sites, starts = sites_of(model, "mlp", layer=2), starts_of(model)
    suffix = read_suffix(model, ROWS, starts)
    entered = enter(model, suffix, blocks_below(model, sites), *picked(starts))
    assert not entered.refusal
    torch.testing.assert_close(run(model, entered.suffix, *picked(starts)), entered.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_some_rows_alone_say_the_same(family):
    model = opened(family)
    sites, starts = sites_of(model, "mlp"), starts_of(model)
    suffix = read_suffix(model, ROWS, starts)
    row, place = picked(starts)
    entered = enter(model, suffix, blocks_below(model, sites), row, place)
    kept = rows_of(rows_of(entered.suffix, torch.tensor([0, 2])), torch.tensor([1]))
    assert kept.ids.shape[0] == kept.lower.hidden.shape[0] == 1
    assert all(layer.keys.shape[0] == 1 for layer in kept.cache.layers)
    logits = run(model, kept, torch.zeros(2, dtype=torch.long), place[4:])
    torch.testing.assert_close(logits, entered.logits[4:], rtol=1e-9, atol=1e-6)


def test_the_keys_and_values_of_skipped_layers_take_no_memory():
    model = opened("llama")
    suffix = read_suffix(model, ROWS, starts_of(model))
    sites = sites_of(model, "block")
    entered = enter(model, suffix, blocks_below(model, sites), *picked(starts_of(model)))
    sizes = [layer.keys.untyped_storage().nbytes() for layer in entered.suffix.cache.layers]
    assert sizes[:2] == [8, 8]
    assert sizes[2] == suffix.cache.layers[2].keys.untyped_storage().nbytes() > 100


class Aside(torch.nn.Module):
    """Tells a later block something that does not go through the hidden states."""

    def __init__(self, block, told, listens):
        super().__init__()
        self.block, self.told, self.listens = block, told, listens

    def forward(self, hidden, *args, **kwargs):
        output = self.block(hidden, *args, **kwargs)
        if self.listens:
            return output + self.told.pop()
        self.told.append(output.mean())
        return output


class Nudging(Aside):
    """Tells a later block only that it ran."""

    def forward(self, hidden, *args, **kwargs):
        output = self.block(hidden, *args, **kwargs)
        if not self.listens:
            self.told.append(True)
            return output
        heard = len(self.told)
        self.told.clear()
        return output + heard * output.roll(1, -1)  # a norm would undo a sum or a factor


@pytest.mark.parametrize(
    ("strange", "why"), [(Aside, "raises IndexError"), (Nudging, "logits differ")]
)
def test_where_skipping_changes_what_a_model_says_all_layers_run(strange, why):
    model, told = opened("gpt2"), []
    sites, starts = sites_of(model, "mlp", layer=2), starts_of(model)
    blocks = blocks_below(model, sites)
    suffix = read_suffix(model, ROWS, starts)
    model.transformer.h[0] = strange(model.transformer.h[0], told, False)
    model.transformer.h[3] = strange(model.transformer.h[3], told, True)
    entered = enter(model, suffix, blocks, *picked(starts))
    assert why in entered.refusal
    assert entered.suffix is suffix
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_a_model_makes_of_what_its_head_writes_is_not_left_out():
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = GraniteConfig(vocab_size=64, **GROUPED, **ends, logits_scaling=8.0)
    model = GraniteForCausalLM(config).double().eval().requires_grad_(False)
    sites, starts = sites_of(model, "block"), starts_of(model)
    suffix = read_suffix(model, ROWS, starts)
    entered = enter(model, suffix, blocks_below(model, sites), *picked(starts))
    assert not entered.refusal
    assert entered.suffix.head is None
    logits = run(model, entered.suffix, *picked(starts))
    torch.testing.assert_close(logits, entered.logits, rtol=1e-9, atol=1e-6)


def attending(change):
    """Return an attention that changes what it is given and then is torch's."""
    torchs = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, query, key, value, mask, **options):
        return torchs(module, *change(query, key, value, mask), **options)

    return attend


def test_attention_that_others_put_in_place_is_read_from_and_put_back(monkeypatch):
    model, doubled = opened("llama"), attending(lambda query, *rest: (2 * query, *rest))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", doubled)
    sites, starts = sites_of(model, "block"), starts_of(model)
    suffix = read_suffix(model, ROWS, starts)
    entered = enter(model, suffix, blocks_below(model, sites), *picked(starts))
    assert not entered.suffix.direct
    logits = run(model, entered.suffix, *picked(starts))
    torch.testing.assert_close(logits, entered.logits, rtol=1e-9, atol=1e-6)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is doubled


def test_after_an_interrupted_forward_models_attend_as_before():
    model, before = opened("gpt2"), ALL_ATTENTION_FUNCTIONS["sdpa"]
    sites, starts = sites_of(model, "block"), starts_of(model)
    entered = enter(
        model, read_suffix(model, ROWS, starts), blocks_below(model, sites), *picked(starts)
    )
    assert entered.suffix.direct
    model.transformer.h[3].register_forward_hook(interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(model, entered.suffix, *picked(starts))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping


def tensors_in_cycles():
    """Return the tensors that only the garbage collector would free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [one for one in gc.garbage if isinstance(one, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize("family", DIRECT)
def test_what_was_read_is_freed_with_what_holds_it(family):
    model = opened(family)
    sites, starts = sites_of(model, "block"), starts_of(model)
    shifts = some_shifts(sites)
    gc.collect()
    gc.disable()
    try:
        suffix = read_suffix(model, ROWS, starts)
        entered = enter(model, suffix, blocks_below(model, sites), *picked(starts))
        assert entered.suffix.direct
        loss_and_gradients(from_suffix(model, entered.suffix, sites, starts, shifts), shifts)
        del suffix, entered
        assert tensors_in_cycles() == []
    finally:
        gc.enable()


def test_in_few_bits_attention_and_head_are_the_models_own():
    model = opened("llama").bfloat16()
    sites, starts = sites_of(model, "block"), starts_of(model)
    entered = enter(
        model, read_suffix(model, ROWS, starts), blocks_below(model, sites), *picked(starts)
    )
    assert not entered.refusal
    assert not entered.suffix.direct
    assert entered.suffix.head is None


def test_a_site_outside_of_the_blocks_or_in_the_first_one_skips_nothing():
    model = opened("gpt2")
    assert blocks_below(model, ["transformer.ln_f"]) == ()
    assert blocks_below(model, ["transformer.h.0.mlp"]) == ()
    assert blocks_below(model, ["transformer.h.0"]) == ("transformer.h.0",)
    assert blocks_below(model, ["transformer.h.3", "transformer.h.1.mlp"]) == ("transformer.h.0",)
    assert last_mlp(model, ["transformer.h.3.mlp.c_proj"]) is None
    assert last_mlp(model, ["transformer.h.2"]) == "transformer.h.3.mlp"


def interrupting(*_):
    raise KeyboardInterrupt


def test_forwards_that_others_put_in_place_are_put_back():
    model = opened("gpt2")
    first, second = model.transformer.h[0], model.transformer.h[1]
    theirs = partial(second.forward)
    second.forward = theirs
    ids = torch.tensor([ROWS[0]])
    with remembering(model, ["transformer.h.0", "transformer.h.1"]) as kept:
        expected = model(input_ids=ids).logits
    with skipped(model, kept[0]):
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
    first.register_forward_hook(interrupting)
    with pytest.raises(KeyboardInterrupt), skipped(model, kept[0]):
        model(input_ids=ids)
    assert vars(second)["forward"] is theirs
    assert "forward" not in vars(first)
