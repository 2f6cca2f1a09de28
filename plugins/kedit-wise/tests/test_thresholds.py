"""Thresholds: between two kinds of prompts, for all shards together, whatever way led to the memory."""

import pytest
import torch
from attrs import evolve

from kedit_core import EditRequest
from kedit_wise.config import Routes
from kedit_wise.shards import Shard, SideMatrix
from kedit_wise.thresholds import NAMED, calibrated, with_thresholds
from kedit_wise.updates import masked

EDITS, TEXTS = 40, 2000


def memory(shards, loud=0.02):
    """Return a memory of which each shard is stirred by other texts, a share ``loud`` of them."""
    chance = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=chance)

    def shard():
        outside = 0.5 * draw(TEXTS)
        some = torch.randperm(TEXTS, generator=chance)[: int(loud * TEXTS)]
        outside[some] = 0.85 + 0.15 * draw(len(some))
        return Shard(update=masked(torch.eye(2), None), outside=outside)

    count = EDITS * shards
    return SideMatrix(
        at="down",
        shards=[shard() for _ in range(shards)],
        requests=[EditRequest(prompt=f"Edit {n} says", target_new="yes") for n in range(count)],
        keys=draw(count, 1, 2),
        shard=torch.arange(shards).repeat_interleave(EDITS),
        reached=0.9 + 0.1 * draw(count),
        settings={},
    )


def let_in(held):
    """Return the share of the texts that stir any shard."""
    outside = torch.stack([one.outside for one in held.shards])
    return float((outside >= held.thresholds[:, None]).any(0).float().mean())


def test_a_threshold_lies_between_own_prompts_and_irrelevant_texts():
    inside, outside = torch.linspace(0.8, 1.0, 50), torch.linspace(0.1, 0.3, 200)
    assert 0.3 < calibrated(inside, outside, 0.99, 0.97) < 0.8
    assert calibrated(inside, torch.empty(0), 0.99, 0.97) < 0.5


def test_where_both_overlap_texts_stay_out_as_long_as_most_own_prompts_come_in():
    inside = torch.linspace(0.5, 1.0, 51)
    assert calibrated(inside, torch.linspace(0.1, 0.55, 200), 1.0, 0.8) == pytest.approx(0.55)
    threshold = calibrated(inside, torch.linspace(0.1, 0.9, 200), 0.99, 0.8)
    assert float((inside >= threshold).float().mean()) == pytest.approx(0.8, abs=0.02)


def test_one_edit_that_failed_does_not_open_its_shard():
    inside = torch.cat([torch.tensor([0.1, 0.1]), torch.linspace(0.95, 1.0, 98)])
    outside = torch.linspace(0.1, 0.6, 500)
    assert calibrated(inside, outside, 0.99, 0.97) > 0.59


@pytest.mark.parametrize("shards", [1, 4, 10])
def test_all_shards_together_keep_texts_out(shards):
    routes = Routes(rejects=0.98, keeps=0.0)
    assert let_in(with_thresholds(memory(shards, loud=0.05), routes)) <= 0.025


def test_more_shards_raise_the_thresholds_of_those_that_were_there():
    routes = Routes(keeps=0.5)
    whole = memory(10)
    alone = evolve(
        whole,
        shards=whole.shards[:1],
        requests=whole.requests[:EDITS],
        keys=whole.keys[:EDITS],
        shard=whole.shard[:EDITS],
        reached=whole.reached[:EDITS],
    )
    first = float(with_thresholds(alone, routes).thresholds[0])
    assert first < float(with_thresholds(whole, routes).thresholds[0])


def test_thresholds_do_not_depend_on_those_before():
    routes = Routes()
    once = with_thresholds(memory(3), routes)
    moved = evolve(
        once, shards=[evolve(one, threshold=0.1, temperature=9.0) for one in once.shards]
    )
    assert with_thresholds(moved, routes) == once


def test_texts_that_name_a_subject_say_nothing():
    held = memory(1)
    shard = held.shards[0]
    loud = evolve(shard, outside=torch.cat([shard.outside, torch.full((TEXTS,), NAMED)]))
    routes = Routes()
    both = [with_thresholds(evolve(held, shards=[one]), routes).thresholds for one in (shard, loud)]
    assert torch.equal(*both)
