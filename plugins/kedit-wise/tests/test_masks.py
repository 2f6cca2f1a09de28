"""Masks: how many entries, which ones, and one bit each."""

import pytest
import torch

from kedit_wise.masks import drawn, packed, unpacked

SHAPE = (37, 53)


def test_disjoint_shards_never_touch_one_entry_until_all_are_shared_out():
    masks = [drawn(SHAPE, 0.2, shard, seed=0, disjoint=True) for shard in range(5)]
    assert torch.equal(torch.stack(masks).sum(0), torch.ones(SHAPE, dtype=torch.long))
    again = drawn(SHAPE, 0.2, 5, seed=0, disjoint=True)
    assert not torch.equal(again, masks[0])


def test_independent_masks_overlap_as_chance_has_it():
    first, second = (drawn(SHAPE, 0.2, shard, seed=0, disjoint=False) for shard in (0, 1))
    assert float((first & second).float().mean()) == pytest.approx(0.04, abs=0.02)


@pytest.mark.parametrize("disjoint", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.3, 0.5])
def test_a_mask_has_its_share_of_the_entries_and_is_a_function_of_the_seed(share, disjoint):
    mask = drawn((100, 100), share, 1, seed=3, disjoint=disjoint)
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.02)
    assert torch.equal(mask, drawn((100, 100), share, 1, seed=3, disjoint=disjoint))
    assert not torch.equal(mask, drawn((100, 100), share, 1, seed=4, disjoint=disjoint))


def test_the_whole_matrix_needs_no_mask():
    assert drawn(SHAPE, 1.0, 0, seed=0, disjoint=True) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (3, 3), SHAPE])
def test_a_mask_takes_a_bit_an_entry_and_comes_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    bits = packed(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, shape), mask)


def test_bits_of_another_matrix_are_refused():
    with pytest.raises(ValueError, match="no mask of 10 entries"):
        unpacked(torch.zeros(3, dtype=torch.uint8), (2, 5))
