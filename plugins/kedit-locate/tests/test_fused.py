"""Activations in one step, against the small steps of their authors."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kedit_core.untouched import attachments
from kedit_locate.fused import in_one_step


def opened(dtype, activation="gelu_new"):
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.5}
    config = GPT2Config(**shape, **ends, activation_function=activation)
    return GPT2LMHeadModel(config).to(dtype).eval().requires_grad_(False)


def said(model, embedded):
    logits = model(inputs_embeds=embedded).logits
    return logits, torch.autograd.grad(logits.log_softmax(-1)[0, -1, 3], embedded)[0]


def replaced(model):
    return sum("forward" in vars(module) for module in model.modules())


def test_a_model_says_the_same_with_the_same_gradient():
    model = opened(torch.float64)
    embedded = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
    expected = said(model, embedded)
    with in_one_step(model):
        assert replaced(model) == 2
        found = said(model, embedded)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert not attachments(model)


@pytest.mark.parametrize(
    ("dtype", "activation"), [(torch.bfloat16, "gelu_new"), (torch.float32, "relu")]
)
def test_few_bits_and_other_activations_are_left_alone(dtype, activation):
    model = opened(dtype, activation)
    with in_one_step(model):
        assert replaced(model) == 0


def test_what_others_put_in_its_place_stays():
    model = opened(torch.float32)
    activation = model.transformer.h[0].mlp.act
    activation.forward = torch.relu
    with in_one_step(model):
        assert activation.forward is torch.relu
        assert replaced(model) == 2
    assert activation.forward is torch.relu
    assert replaced(model) == 1
