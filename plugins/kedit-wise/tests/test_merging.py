"""Merging, against cases worked out by hand."""

import torch

from kedit_wise.merging import merged


def rows(*values):
    return [torch.tensor([row]) for row in values]


def test_ties_elects_signs_by_weight_and_takes_the_mean_of_those_that_agree():
    # Entry by entry: 3 and 1 agree; 2 outweighs -1; -4 outweighs 3; nobody has anything.
    updates = rows([3.0, 2.0, -4.0, 0.0], [1.0, -1.0, 3.0, 0.0])
    found = merged(updates, [1.0, 1.0], "ties")
    assert found.tolist() == [[2.0, 2.0, -4.0, 0.0]]


def test_ties_weighs_votes_and_means():
    # 1 · 3 against 4 · (-1): minus is elected. Then (1 · 2 + 4 · 1) / 5.
    updates = rows([3.0, 2.0], [-1.0, 1.0])
    found = merged(updates, [1.0, 4.0], "ties")
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.2]]))


def test_ties_keeps_the_largest_entries_of_each_update():
    # Half of four entries each: 3 and -4; 5 and 2.
    updates = rows([3.0, 2.0, -4.0, 1.0], [1.0, 5.0, 0.5, 2.0])
    found = merged(updates, [1.0, 1.0], "ties", density=0.5)
    assert found.tolist() == [[3.0, 5.0, -4.0, 2.0]]


def test_votes_that_cancel_leave_nothing():
    assert merged(rows([2.0], [-2.0]), [1.0, 1.0], "ties").tolist() == [[0.0]]


def test_ties_of_updates_that_share_no_entry_keeps_them_all():
    updates = rows([3.0, 0.0, 0.0], [0.0, -1.0, 0.0])
    assert merged(updates, [1.0, 1.0], "ties").tolist() == [[3.0, -1.0, 0.0]]


def test_linear_is_the_weighted_sum():
    found = merged(rows([1.0, 2.0], [10.0, 20.0]), [1.0, 0.5], "linear")
    assert found.tolist() == [[6.0, 12.0]]
