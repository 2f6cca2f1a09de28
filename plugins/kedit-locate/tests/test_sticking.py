"""When an edit sticks, alone and among many."""

import pytest

from kedit_locate.sticking import far_enough, sticks_at


def test_alone_an_edit_sticks_at_until_and_where_a_layer_is_full_at_crowded():
    assert sticks_at(0.98, 0.6, 0.0) == pytest.approx(0.98, abs=1e-12)
    assert sticks_at(0.98, 0.6, 1.0) == pytest.approx(0.6, abs=1e-12)
    assert sticks_at(0.98, 0.6, 7.5) == pytest.approx(0.6, abs=1e-12)


def test_between_the_log_odds_fall_with_the_root_of_what_is_filled():
    # odds of .9 are 9, of .5 they are 1: in the middle of their logarithms they are 3
    assert sticks_at(0.9, 0.5, 0.25) == pytest.approx(0.75, abs=1e-12)


def test_the_fuller_the_lower():
    found = [sticks_at(0.99, 0.5, filled / 10) for filled in range(11)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("until", [0.0, 0.5, 1.0])
def test_where_both_are_the_same_nothing_changes(until):
    assert sticks_at(until, until, 0.3) == until


def test_a_search_goes_half_of_the_nll_further():
    assert far_enough(0.81) == pytest.approx(far_enough(0.9) * 2)
    assert far_enough(1.0) == 0


@pytest.mark.parametrize(("until", "crowded"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_ends_are_probabilities_too(until, crowded):
    assert 0 < sticks_at(until, crowded, 0.5) < 1
    assert far_enough(0.0) > 1
