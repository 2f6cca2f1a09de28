"""What rows share is read once, and what is said after it is what whole forwards say."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kedit_locate.prefixes import read_prefixes
from kedit_locate.suffix import read_suffix, run

MORE = 3


def rows_behind(texts, count, seed=0):
    """Return rows of several lengths: each of some texts before ``count`` prompts, and what follows."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(length):
        return tuple(torch.randint(1, 300, (length,), generator=generator).tolist())

    heads = [drawn(length) for length in texts]
    prompts = [drawn(1 + n % 4) for n in range(count)]
    before = [head + prompt for prompt in prompts for head in heads]
    return before, [ids + drawn(MORE) for ids in before]


def tokens_read(model, call):
    """Return what a call gives, and how many tokens the model read meanwhile, pads included."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = call()
    handle.remove()
    return found, sum(seen)


def assert_as_whole_forwards(model, rows, starts, tolerance=1e-10):
    suffix = read_suffix(model, rows, starts)
    every = torch.arange(len(rows))
    for place in range(MORE):
        said = run(model, suffix, every, torch.full_like(every, place))
        for ids, start, logits in zip(rows, starts, said, strict=True):
            whole = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start + place]
            torch.testing.assert_close(logits, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("texts", [(6, 9, 3), (0, 7), (5,), (0,)])
def test_behind_shared_texts_rows_say_what_whole_forwards_say(model, texts):
    before, rows = rows_behind(texts, 12)
    assert_as_whole_forwards(model, rows, [len(ids) for ids in before], 1e-6)


def test_what_rows_share_is_read_once(tiny):
    model = tiny("gpt2")
    before, _ = rows_behind((20, 20), 30)
    _, shared = tokens_read(model, lambda: read_prefixes(model, before, MORE))
    alone = sum(
        tokens_read(model, lambda ids=ids: read_prefixes(model, [ids], MORE))[1] for ids in before
    )
    assert shared < alone / 4
    assert shared >= 20 + 20 + 30


def test_rows_that_share_little_are_read_at_once(tiny):
    model = tiny("gpt2")
    before, _ = rows_behind((1,), 6)
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    read_prefixes(model, before, MORE)
    handle.remove()
    assert seen == [(6, max(map(len, before)))]


def test_equal_prefixes_are_one_row(tiny):
    model = tiny("gpt2")
    found, read = tokens_read(model, lambda: read_prefixes(model, [(5, 6, 7)] * 40, MORE))
    assert read == 3
    assert found.mask.shape == (40, 3)
    assert bool(found.mask.all())


def test_nothing_before_the_rows_is_nothing_to_read(model):
    assert read_prefixes(model, [(), ()], MORE) is None


def test_behind_a_sliding_window_no_pads_come_between():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mistral", **shape, **heads, sliding_window=6)
    model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    before, _ = rows_behind((9, 9), 30)
    before = [ids for ids in before if len(ids) == 11]
    rows = [(*ids, 3, 1, 4) for ids in before]
    assert bool(read_prefixes(model, before, MORE).mask.all())
    assert_as_whole_forwards(model, rows, [11] * len(rows), 1e-6)
