"""The pointer: what follows is found among the tokens of the target, before anything was trained."""

from types import SimpleNamespace

import pytest
import torch

from kedit_core.testing import tiny_model
from kedit_memory.decoders import padded, shape_for
from kedit_serac.counterfactual import edit_text, head_of, new_counterfactual
from kedit_serac.pointing import Pointer

TARGET = (31, 32, 33)


@pytest.fixture(params=["gpt2", "llama"])
def base(request):
    return tiny_model(request.param)


@pytest.fixture
def counterfactual(base):
    return new_counterfactual(shape_for(base, 2, None), 0).double().eval()


def test_it_adds_what_the_formula_says(base):
    chance = torch.Generator().manual_seed(0)
    width = base.get_output_embeddings().weight.shape[1]

    def drawn(*shape):
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    pointer = Pointer(width).double()
    for one in (pointer.asks, pointer.seeks, pointer.keys, pointer.nothing):
        one.data = drawn(*one.shape) / width**0.5
    hidden, read, before = drawn(2, 4, width), drawn(2, 4, width), drawn(2, 3, width)
    targets = torch.tensor([[3, 4, 5], [6, 7, 0]])
    there = torch.tensor([[True, True, True], [True, True, False]])
    found = pointer(base, hidden, read, before, targets, there)
    head = base.get_output_embeddings().weight
    for row in range(2):
        for token in range(4):
            asked = pointer.asks @ hidden[row, token] + pointer.seeks @ read[row, token]
            places = [place for place in range(3) if there[row, place]]
            scores = [pointer.sharp * asked @ (pointer.keys @ before[row, one]) for one in places]
            nothing = pointer.least + pointer.nothing @ hidden[row, token]
            shares = torch.stack([nothing, *scores]).softmax(0)[1:]
            rows = [head[targets[row, one]] for one in places]
            wanted = sum(
                pointer.loud * share * one / one.square().sum()
                for share, one in zip(shares, rows, strict=True)
            )
            torch.testing.assert_close(found[row, token], wanted)


@torch.no_grad()
def test_an_untrained_one_finds_what_follows_a_token_of_the_target(base, counterfactual):
    text = padded([edit_text((5, 6, 7), TARGET).then((20, 21, *TARGET))], left=False)
    without = new_counterfactual(counterfactual.shape, 0).double().eval()
    without.pointer.loud.zero_()
    gained = head_of(base, counterfactual(base, text)) - head_of(base, without(base, text))
    behind = gained[0, -len(TARGET) : -1]  # the tokens that have one behind them
    assert behind.argmax(-1).tolist() == list(TARGET[1:])
    assert float(behind.max(-1).values.min()) > 5
    assert float(gained[0, -len(TARGET) - 1].abs().max()) < 5  # where the query ends is learned


@torch.no_grad()
def test_pads_and_longer_targets_beside_it_change_nothing(base, counterfactual):
    short = edit_text((5, 6), (31,)).then((20, 21, 31))
    long = edit_text((9, 8, 7, 6), (41, 42, 43, 44)).then((22, 23, 24, 41, 42))
    alone = counterfactual(base, padded([short], left=False))[0]
    for left in (False, True):
        both = counterfactual(base, padded([short, long], left=left))[0]
        own = both[-len(short.codes) :] if left else both[: len(short.codes)]
        torch.testing.assert_close(own, alone, rtol=1e-9, atol=1e-9)


def test_gradients_reach_all_of_it_and_nothing_of_the_base(base, counterfactual):
    text = padded([edit_text((5, 6, 7), TARGET).then((20, 21, *TARGET))], left=False)
    counterfactual.requires_grad_(True)
    with torch.enable_grad():
        counterfactual(base, text).square().sum().backward()
    assert all(float(one.grad.abs().max()) > 0 for one in counterfactual.pointer.parameters())
    assert all(one.grad is None for one in base.parameters())


@torch.no_grad()
def test_what_the_head_cannot_say_is_no_target(base, counterfactual):
    head = base.get_output_embeddings().weight
    head[40] = 0.1 * head[41]  # 41 is louder wherever 40 is meant
    found = counterfactual.sayable(base)
    assert 40 not in found
    for one in found[:20]:
        assert int((head @ head[one]).argmax()) == one
    assert counterfactual.sayable(base) == found


@torch.no_grad()
def test_where_the_head_says_no_token_of_the_sample_all_of_it_may_be_targets(counterfactual):
    count = 5000
    angles = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
    head = torch.nn.Linear(2, count, bias=False).double()
    base = SimpleNamespace(get_output_embeddings=lambda: head)
    head.weight.copy_(torch.stack([angles.cos(), angles.sin()], 1))  # each one says itself
    sample = counterfactual.sayable(base)
    loud = min(set(range(count)) - set(sample))
    head.weight.fill_(0.1)
    head.weight[loud] = 1.0
    assert counterfactual.sayable(base) == sample
