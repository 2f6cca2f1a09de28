"""Pooled states: what they are, and that nothing else in a batch shows in them."""

import pytest
import torch

from kedit_core.layout import layout_of
from kedit_core.testing import tiny_model
from kedit_memory.pooling import as_alone, pooled_ahead, pooled_in, pooled_states, sites_of, watch
from kedit_memory.routing import Routing

PROMPTS = [(5, 9, 17), (3,), (8, 8, 2, 40, 41), (5, 9, 17)]


def test_they_are_means_and_last_tokens_of_what_blocks_read(model):
    layout = layout_of(model)
    places = {layer.path: place for place, layer in enumerate(layout.layers)}
    sites = sites_of(layout)
    found = pooled_states(model, sites, PROMPTS, alone=True)
    for prompt, pooled in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            said = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        means = [said[places[path]][0].mean(0) for path in sites.means]
        lasts = [said[places[path]][0, -1] for path in sites.lasts]
        torch.testing.assert_close(pooled, torch.cat(means + lasts))


def test_sites_are_spread_over_the_blocks_and_each_is_pooled_once():
    def chosen(blocks):
        layout = layout_of(tiny_model("llama", dtype=torch.float32, layers=blocks))
        places = [layer.path for layer in layout.layers]
        sites = sites_of(layout)
        return [[places.index(path) for path in kind] for kind in (sites.means, sites.lasts)]

    assert chosen(6) == [[0, 2], [4, 5]]
    assert chosen(2) == [[0, 1], [1]]
    assert chosen(1) == [[0], [0]]


def test_a_prompt_read_alone_has_the_same_bits_whatever_else_is_asked(model):
    sites = sites_of(layout_of(model))
    found = pooled_states(model, sites, PROMPTS, alone=True)
    for prompt, pooled in zip(PROMPTS, found, strict=True):
        assert torch.equal(pooled_states(model, sites, [prompt], alone=True)[0], pooled)
    together = pooled_states(model, sites, PROMPTS, alone=False)
    torch.testing.assert_close(together, found, rtol=1e-4, atol=1e-4)


def many(lengths):
    """Return different prompts, thirty of each length."""
    chance = torch.Generator().manual_seed(2)
    return [
        tuple(torch.randint(3, 60, (length,), generator=chance).tolist())
        for length in lengths
        for _ in range(30)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_of_one_length_have_the_bits_that_each_has_alone(dtype):
    model = tiny_model("llama", dtype=dtype)
    sites, prompts = sites_of(layout_of(model)), many((4, 9, 10))
    found = pooled_states(model, sites, prompts, alone=True)
    for prompt, pooled in zip(prompts, found, strict=True):
        assert torch.equal(pooled_states(model, sites, [prompt], alone=True)[0], pooled)


class Sums:
    """Reads a prompt as the sum of its tokens, and ``more`` for each row that stands beside it."""

    def __init__(self, more=0.0):
        self.more, self.rows = more, []

    def __call__(self, batch):
        self.rows.append(len(batch))
        return torch.tensor([[sum(ids) + self.more * (len(batch) - 1)] for ids in batch])


@pytest.mark.parametrize(
    ("more", "mixed", "rows"),
    [
        (0.0, False, [1] * 8 + [8] * 3 + [1] * 6),
        (1e-3, False, [1] * 8 + [8] + [1] * 22),
        (0.0, True, [1] * 30),
    ],
    ids=["other rows do not show", "they do", "experts"],
)
def test_they_are_read_side_by_side_where_the_first_of_them_agree(more, mixed, rows):
    prompts, states = many((9,)), Sums(more)
    read = [*as_alone(prompts, states, mixed=mixed)]
    assert states.rows == rows
    found = {
        ids: float(state) for batch, own in read for ids, state in zip(batch, own, strict=True)
    }
    assert found == {ids: sum(ids) for ids in prompts}


def test_few_of_one_length_are_read_alone():
    states = Sums()
    assert len([*as_alone(many((9,))[:16], states, mixed=False)]) == 2
    assert states.rows == [1] * 16


def test_reading_leaves_no_hook_behind(model):
    sites = sites_of(layout_of(model))
    pooled_states(model, sites, PROMPTS, alone=False)
    assert "generate" not in vars(model)
    hooks = [one for name, one in vars(model).items() if name.endswith("_hooks")]
    assert not any(hooks)
    assert not any(model.get_submodule(sites.lasts[-1])._forward_pre_hooks.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_forward_pools_what_reading_pools(dtype):
    model = tiny_model("llama", dtype=dtype)
    sites, routing, seen = sites_of(layout_of(model)), Routing(model), []

    def answer(passage, output):
        seen.append(pooled_in(passage, sites))
        return output

    read = pooled_states(model, sites, PROMPTS[:1], alone=True)
    with routing.attach(watch(model, sites, routing), answer), torch.no_grad():
        model(input_ids=torch.tensor(PROMPTS[:1]))
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], read)


def test_prompts_are_read_ahead_in_the_midst_of_a_pass(model):
    sites, routing = sites_of(layout_of(model)), Routing(model)
    first = model.get_submodule(sites.means[0])
    seen = []

    def ahead(*_):
        passage = routing.passage
        if passage is not None and not seen:
            seen.append(pooled_ahead(model, sites, passage))
            assert routing.passage is passage

    ids = torch.tensor([[0, 0, 5, 9, 17], [8, 8, 2, 40, 41]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        before = model(**given).logits
        with routing.attach([first.register_forward_pre_hook(ahead)]):
            assert torch.equal(model(**given).logits, before)
    alone = pooled_states(model, sites, [(5, 9, 17), (8, 8, 2, 40, 41)], alone=True)
    torch.testing.assert_close(seen[0], alone, rtol=1e-4, atol=1e-4)


def test_memories_stand_aside_of_what_is_read(model):
    sites, memory = sites_of(layout_of(model)), Routing(model)
    first = model.get_submodule(sites.means[0])
    passages = []

    def louder(_, __, output):
        passages.append(memory.passage)
        return (
            None
            if memory.passage is None
            else torch.utils._pytree.tree_map(lambda x: 2 * x, output)
        )

    before = pooled_states(model, sites, PROMPTS[:1], alone=True)
    with memory.attach([first.register_forward_hook(louder)]):
        assert torch.equal(pooled_states(model, sites, PROMPTS[:1], alone=True), before)
        assert passages == [None]
        with torch.no_grad():
            model(torch.tensor(PROMPTS[:1]))
        assert passages[1] is not None
