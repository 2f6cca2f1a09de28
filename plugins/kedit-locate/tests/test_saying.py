"""Losses and their gradients from slices of the head, against logits of the whole vocabulary."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, linear

from kedit_locate.saying import Head, head_of, losses, losses_of

WIDTH, VOCABULARY = 4096, 300  # several slices, the last one shorter


def drawn(*shape, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def a_head(bias=False, scale=WIDTH**-0.5, dtype=torch.float64):
    weight = drawn(VOCABULARY, WIDTH, scale=scale, dtype=dtype)
    return Head(weight=weight, bias=drawn(VOCABULARY, dtype=dtype) if bias else None)


def weighed(found):
    """Return one loss in which every target and anchor counts differently."""
    every = torch.cat(found)
    return (every * torch.arange(1, len(every) + 1)).sum()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("targets", "anchors"), [(5, 3), (4, 0), (0, 2)])
def test_losses_and_gradients_are_those_of_all_logits(targets, anchors, bias):
    head, hidden = a_head(bias), drawn(targets + anchors, WIDTH).requires_grad_()
    assert len(list(head.slices(hidden.detach()))) > 2
    target = torch.tensor([0, 299, 128, 127, 299][:targets], dtype=torch.long)
    said = drawn(anchors, VOCABULARY).log_softmax(-1)
    found = losses(head, hidden, target, said)
    logits = linear(hidden, head.weight, head.bias)
    expected = (
        cross_entropy(logits[:targets], target, reduction="none"),
        kl_div(said, logits[targets:].log_softmax(-1), log_target=True, reduction="none").sum(-1),
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for one, other in zip(losses_of(logits, target, said), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(weighed(found), hidden)
    (other,) = torch.autograd.grad(weighed(expected), hidden)
    assert bool(other.any())
    torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_an_anchor_that_did_not_move_pulls_nowhere_in_float32():
    head, hidden = (
        a_head(dtype=torch.float32),
        drawn(3, WIDTH, dtype=torch.float32).requires_grad_(),
    )
    said = head.logits(hidden).detach().log_softmax(-1)
    none, apart = losses(head, hidden, torch.zeros(0, dtype=torch.long), said)
    (gradient,) = torch.autograd.grad(apart.sum(), hidden)
    assert len(none) == 0
    assert float(apart.detach().abs().max()) < 1e-5
    assert float(gradient.abs().max()) < 1e-6


def test_logits_too_large_for_their_exponential_are_no_trouble():
    head, hidden = a_head(scale=100.0), drawn(2, WIDTH).requires_grad_()
    assert float(head.logits(hidden).detach().abs().max()) > 1000
    target, said = torch.tensor([7]), drawn(1, VOCABULARY).log_softmax(-1)
    found = losses(head, hidden, target, said)
    expected = losses_of(head.logits(hidden), target, said)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(weighed(found), hidden)
    (other,) = torch.autograd.grad(weighed(expected), hidden)
    torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-8)


def test_where_no_gradient_is_wanted_there_is_none():
    target, said = torch.tensor([7]), drawn(1, VOCABULARY).log_softmax(-1)
    found = losses(a_head(), drawn(2, WIDTH), target, said)
    assert not any(one.requires_grad for one in found)


def test_a_head_that_others_hang_on_or_of_few_bits_is_none(tiny):
    model = tiny("llama")
    head = head_of(model)
    assert head.weight is model.lm_head.weight
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert head_of(model) is None
    handle.remove()
    assert head_of(model) is not None
    assert head_of(tiny("llama", dtype=torch.bfloat16)) is None
