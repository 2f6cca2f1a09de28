"""How a search was cut can be noted, and read again from notes that anybody may have written."""

from itertools import islice

import pytest

from kedit_locate.sizes import Sizes, noted, noted_before

LOTS = [Sizes(edits=8, rows=40)] * 3 + [Sizes(edits=4, rows=20), Sizes(edits=8, rows=40)]


def test_lots_come_back_as_they_were_noted():
    told = noted(LOTS)
    assert told == [[3, 8, 40], [1, 4, 20], [1, 8, 40]]
    assert list(noted_before({"sizes": [[], told]}, 1)) == LOTS


def test_a_search_that_was_not_noted_has_no_lots():
    assert list(noted_before({}, 0)) == []
    assert list(noted_before({"sizes": [noted(LOTS)]}, 1)) == []


@pytest.mark.parametrize(
    "told",
    [7, [7], [[7]], [[[1, 2]]], [[[1, 2, 0]]], [[[1, -2, 3]]], [[[1, 2.5, 3]]], [[["1", 2, 3]]]],
)
def test_what_is_no_note_of_lots_is_not_believed(told):
    assert list(noted_before({"sizes": told}, 0)) == []


def test_a_note_of_endless_lots_takes_no_memory():
    lots = noted_before({"sizes": [[[10**18, 2, 3]]]}, 0)
    assert list(islice(lots, 2)) == [Sizes(edits=2, rows=3)] * 2
