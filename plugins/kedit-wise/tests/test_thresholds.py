"""Thresholds: between two kinds of prompts, for all shards together, whatever way led to the memory."""

import pytest
import torch
from attrs import evolve

from kedit_core import EditRequest
from kedit_wise.config import Routes
from kedit_wise.routes import Prompts
from kedit_wise.shards import Shard, SideMatrix
from kedit_wise.thresholds import NAMED, calibrated, loud_of, with_thresholds
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
        loud=torch.zeros(count, dtype=torch.bool),
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
        loud=whole.loud[:EDITS],
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


STIRRED = 3
"""The edit whose key texts stir, below."""


def stirred(share, edits=10, measure="match"):
    """Return a memory of orthogonal keys, and texts of which a share has a token like one of the keys."""
    keys = torch.eye(edits, 12)
    held = SideMatrix(
        at="down",
        shards=[Shard(update=masked(torch.eye(12), None))],
        requests=[EditRequest(prompt=f"Edit {n} says", target_new="yes") for n in range(edits)],
        keys=keys[:, None],
        shard=torch.zeros(edits, dtype=torch.long),
        reached=torch.full((edits,), 0.98),
        loud=torch.zeros(edits, dtype=torch.bool),
        settings={"measure": measure, "choose": "ratio"},
    )
    inputs = 0.5 * torch.rand(100, 4, 12, generator=torch.Generator().manual_seed(0))
    inputs[: round(100 * share), 2] = 0.99 * keys[STIRRED]
    return held, Prompts(inputs=inputs, real=torch.ones(100, 4, dtype=torch.bool))


def loud_places(held, texts, **settings):
    found = loud_of(held, 0, texts, Routes(**settings), torch.device("cpu"))
    return found.nonzero()[:, 0].tolist()


def test_a_key_that_texts_stir_is_loud_as_long_as_enough_own_prompts_come_in():
    held, texts = stirred(0.3)
    assert loud_places(held, texts, keeps=0.9) == [STIRRED]
    assert loud_places(held, texts, keeps=0.95) == []
    assert loud_places(*stirred(0.3, edits=4), keeps=0.0) == [STIRRED]


def test_a_key_that_only_few_texts_stir_is_not_loud():
    assert loud_places(*stirred(0.02), rejects=0.97, keeps=0.5) == []
    assert loud_places(*stirred(0.04), rejects=0.97, keeps=0.5) == [STIRRED]


def test_what_stands_at_pads_makes_no_key_loud():
    held, texts = stirred(0.3)
    texts.real[:, 2] = False
    assert loud_places(held, texts, keeps=0.5) == []


def test_a_shard_keeps_one_edit_and_without_texts_or_matches_all():
    held, texts = stirred(1.0, edits=1 + STIRRED)
    alone = evolve(
        held,
        requests=held.requests[STIRRED:],
        **{name: getattr(held, name)[STIRRED:] for name in ("keys", "shard", "reached", "loud")},
    )
    assert loud_places(alone, texts, keeps=0.0) == []
    assert loud_places(held, texts.some(torch.arange(0)), keeps=0.0) == []
    assert loud_places(*stirred(1.0, measure="max"), keeps=0.0) == []


def test_loud_edits_are_among_those_that_a_shard_may_lose():
    held = memory(1)
    loud = torch.arange(EDITS) < 2
    shard = evolve(held.shards[0], outside=torch.linspace(0.1, 0.99, TEXTS))
    held = evolve(held, shards=[shard], reached=torch.linspace(0.9, 1.0, EDITS), loud=loud)
    # Of 40 edits 36 are to come in, and two are lost already.
    threshold = float(with_thresholds(held, Routes(keeps=0.9)).thresholds[0])
    assert int((held.reached[~loud] >= threshold).sum()) == 36


def test_what_loud_edits_reach_moves_no_threshold():
    held = evolve(memory(1), loud=torch.arange(EDITS) == 0)
    moved = held.reached.clone()
    moved[0] = 0.2
    both = [
        with_thresholds(one, Routes()).thresholds for one in (held, evolve(held, reached=moved))
    ]
    assert torch.equal(*both)
