"""Straight steps down the gradient."""

import pytest
import torch

from kedit_core import EditRequest, layout_of
from kedit_core.progress import Progress
from kedit_locate.config import Search
from kedit_locate.descent import Descent
from kedit_locate.rows import edit_rows
from kedit_locate.values import search_values

FACTS = (
    EditRequest(prompt="The capital of {} is", subject="Upper Volta", target_new="Rome"),
    EditRequest(prompt="{} speaks", subject="Toko Yasuda", target_new="Catalan"),
    EditRequest(prompt="We hear that {}", subject="Ada", target_new="plays the guitar"),
)


def descent(width=3, radius=10.0, unit=2.0):
    like = torch.zeros(2, width, dtype=torch.float64)
    return Descent(like, torch.tensor([radius, radius]), torch.tensor([unit, 2 * unit]))


def every():
    return torch.tensor([True, True])


def test_a_step_is_as_long_as_asked_however_steep_it_is():
    moving = descent()
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -1e-9]], dtype=torch.float64)
    moving.step(gradient, 0.5, every())
    expected = torch.tensor([[-0.6, -0.8, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(moving.shift, expected, rtol=1e-14, atol=0)


def test_a_shift_that_left_its_radius_is_put_back_onto_it():
    moving = descent(radius=1.5)
    gradient = torch.ones(2, 3, dtype=torch.float64)
    moving.step(gradient, 10.0, every())
    assert moving.shift.norm(dim=1).tolist() == pytest.approx([1.5, 1.5], rel=1e-14)


def test_only_active_shifts_move_and_nothing_moves_without_a_slope():
    moving = descent()
    gradient = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    moving.step(gradient, 0.5, torch.tensor([True, False]))
    assert moving.shift[0].any()
    assert not moving.shift[1].any()
    before = moving.shift.clone()
    moving.step(torch.zeros_like(gradient), 0.5, every())
    assert torch.equal(moving.shift, before)


def test_the_first_step_of_a_search_is_straight_and_goes_where_adam_goes(model, tokenizer):
    rows = [edit_rows(tokenizer, FACTS[0], ("", "It is. "))]
    site = layout_of(model).down_of(1).path
    options = {"steps": 2, "lr": 0.01, "decay": 0.0, "stop": 0.0}
    straight, adam = (
        search_values(model, rows, site, Search(direction=one, **options), Progress())
        for one in ("gradient", "adam")
    )
    assert straight.shift.norm() == pytest.approx(0.01 * float(straight.base.norm()), rel=1e-12)
    # Adam's first step is the gradient's sign.
    assert torch.equal(straight.shift.sign(), adam.shift.sign())


def test_straight_searches_together_are_those_one_by_one(model, tokenizer):
    edits = [edit_rows(tokenizer, fact, ("", "It is. ")) for fact in FACTS]
    site = layout_of(model).layer(0).path
    search = Search(steps=8, direction="gradient", lr=0.1, clamp=0.5, stop=0.0)
    together = search_values(model, edits, site, search, Progress())
    for number, rows in enumerate(edits):
        alone = search_values(model, [rows], site, search, Progress())
        torch.testing.assert_close(together.shift[number], alone.shift[0], rtol=0, atol=1e-9)
