"""Which layers are edited where nobody chose, and how much shorter beside earlier edits."""

import pytest

from kedit_core import layout_of
from kedit_locate.layers import layers_of, shrink_of


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (1, (0,)),
        (2, (0,)),
        (6, (0,)),
        (12, (1, 2)),
        (28, (3, 4, 5, 6, 7)),
        (32, (3, 4, 5, 6, 7)),
    ],
)
def test_without_a_preset_layers_of_the_first_third_are_taken(tiny, depth, layers):
    layout = layout_of(tiny("gpt2", layers=depth))
    assert layers_of(layout, None) == layers


def test_layers_that_were_chosen_are_taken_as_they_are(tiny):
    assert layers_of(layout_of(tiny("gpt2")), [0, 2]) == (0, 2)


def test_beside_earlier_edits_updates_are_shorter_where_mlps_have_no_gate(tiny):
    plain, gated = layout_of(tiny("gpt2")), layout_of(tiny("llama"))
    assert 0.9 < shrink_of(plain, (0, 1), None) < 1
    assert shrink_of(gated, (0, 1), None) == 1
    assert shrink_of(plain, (0,), 0.5) == shrink_of(gated, (0,), 0.5) == 0.5
