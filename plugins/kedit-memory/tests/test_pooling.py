"""Pooled states: what they are, and that nothing else in a batch shows in them."""

import pytest
import torch

from kedit_core.layout import layout_of
from kedit_core.testing import tiny_model
from kedit_memory.pooling import pooled_in, pooled_states, sites_of, watch
from kedit_memory.routing import Routing

PROMPTS = [(5, 9, 17), (3,), (8, 8, 2, 40, 41), (5, 9, 17)]


def test_they_are_two_means_and_a_last_token(model):
    sites = sites_of(layout_of(model))
    found = pooled_states(model, sites, PROMPTS, alone=True)
    for prompt, pooled in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            said = model(torch.tensor([prompt]), output_hidden_states=True)
        first, middle = said.hidden_states[0][0], said.hidden_states[1][0]
        wanted = torch.cat([first.mean(0), middle.mean(0), middle[-1]])
        torch.testing.assert_close(pooled, wanted)


def test_a_prompt_read_alone_has_the_same_bits_whatever_else_is_asked(model):
    sites = sites_of(layout_of(model))
    found = pooled_states(model, sites, PROMPTS, alone=True)
    for prompt, pooled in zip(PROMPTS, found, strict=True):
        assert torch.equal(pooled_states(model, sites, [prompt], alone=True)[0], pooled)
    together = pooled_states(model, sites, PROMPTS, alone=False)
    torch.testing.assert_close(together, found, rtol=1e-4, atol=1e-4)


def test_reading_leaves_no_hook_behind(model):
    sites = sites_of(layout_of(model))
    pooled_states(model, sites, PROMPTS, alone=False)
    assert "generate" not in vars(model)
    hooks = [one for name, one in vars(model).items() if name.endswith("_hooks")]
    assert not any(hooks)
    assert not any(model.get_submodule(sites.middle)._forward_pre_hooks.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_forward_pools_what_reading_pools(dtype):
    model = tiny_model("llama", dtype=dtype)
    sites, routing, seen = sites_of(layout_of(model)), Routing(model), []

    def answer(passage, output):
        seen.append(pooled_in(passage))
        return output

    read = pooled_states(model, sites, PROMPTS[:1], alone=True)
    with routing.attach(watch(model, sites, routing), answer), torch.no_grad():
        model(input_ids=torch.tensor(PROMPTS[:1]))
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], read)
