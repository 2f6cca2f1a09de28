"""What the report draws, against brute force: means, spread, thinning, forgetting, axes, the plan as TOML."""

import tomllib
from itertools import pairwise
from math import inf, isnan
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_core import retention
from kedit_core.schedule import Schedule
from kedit_lab.report.forgetting import forgetting
from kedit_lab.report.lines import baseline, ending, readings, thinned
from kedit_lab.report.measures import drawn, measure
from kedit_lab.report.plan_text import plan_text
from kedit_lab.report.scales import Scale, spread_out, values_scale
from kedit_lab.report.tracks import views_of
from kedit_lab.report.wording import percent, quantity

EXACT = "reliability.exact"


def own(report, metric=EXACT):
    return [one.value for one in report.scores if one.metric == metric]


def test_a_line_is_the_mean_of_the_orders_between_the_lowest_and_the_highest(made):
    run = made.run(*(made.cell("memit", 40, seed=seed, fade=0.8) for seed in range(3)))
    (view,) = views_of(run)
    for place, reading in enumerate(readings(view.series[0], EXACT)):
        each = [fmean(own(cell.judgements[place].report)) for cell in run.cells]
        assert reading.value == pytest.approx(fmean(each))
        assert (reading.low, reading.high) == (min(each), max(each))
        assert reading.at == run.cells[0].judgements[place].at


def test_a_thinned_line_of_windows_keeps_the_mean_of_all_scores(made):
    run = made.run(made.cell("memit", 70, Schedule(interval=1, evaluate_on="window"), fade=0.9))
    (view,) = views_of(run)
    everything = [value for one in run.cells[0].judgements for value in own(one.report)]
    thin = thinned(readings(view.series[0], EXACT), 9, view, EXACT)
    assert len(thin) == 9
    assert sum(one.value * one.weight for one in thin) / 70 == pytest.approx(fmean(everything))
    assert ending(view.series[0], EXACT, view).value == pytest.approx(fmean(everything))


def test_a_thinned_line_of_states_keeps_states_and_loses_nothing_that_is_not_finite(made):
    (view,) = views_of(made.not_finite())
    full = readings(view.series[0], "perplexity")
    thin = thinned(full, 5, view, "perplexity")
    assert {one.at for one in thin} <= {one.at for one in full}
    assert not thin[-1].finite
    assert thinned(full, 20, view, "perplexity") == full


def test_each_T_of_a_sweep_is_a_view_of_its_own_judgements(made):
    run = made.run(made.cell("memit", 50, Schedule(interval=(5, 25), evaluate_on="window")))
    views = views_of(run)
    assert [one.name for one in views] == ["T = 5", "T = 25"]
    assert [len(one.series[0].tracks[0].points) for one in views] == [10, 2]


def test_the_baseline_is_that_of_the_unedited_model_or_nothing(made):
    (view,) = views_of(made.two_methods(50))
    assert baseline(view.series, "perplexity") == 12.4
    assert baseline(view.series, "drift") == 0.0
    (view,) = views_of(made.two_methods(50, baseline=False))
    assert baseline(view.series, "perplexity") is None
    assert baseline(view.series, "drift") is None


@pytest.mark.parametrize("most", [3, 7, 60])
def test_a_forgetting_matrix_is_the_mean_of_its_blocks(made, most):
    run = made.run(made.cell("memit", 33, Schedule(interval=3, evaluate_on="all"), fade=0.9))
    (view,) = views_of(run)
    found = forgetting(view.series[0], EXACT, view, most)
    judged = run.cells[0].judgements
    assert found.rows[-1] == found.blocks[-1] == 33
    start = 0
    for row, end in zip(found.cells, found.rows, strict=True):
        group = [one for one in judged if start < one.at <= end]
        for column, value in enumerate(row):
            block = slice(found.blocks[column], found.blocks[column + 1])
            values = [value for one in group for value in own(one.report)[block]]
            assert value == pytest.approx(fmean(values)) if values else isnan(value)
        start = end
    assert found.final == pytest.approx(fmean(own(judged[-1].report)))
    assert found.area == pytest.approx(retention(judged, EXACT).area)
    fresh = [value for one in judged for value in own(one.report)[-3:]]
    assert found.fresh == pytest.approx(fmean(fresh))


def test_orders_share_one_matrix_place_by_place(made):
    run = made.run(*(made.cell("memit", 20, seed=seed, fade=0.9) for seed in range(2)))
    (view,) = views_of(run)
    found = forgetting(view.series[0], EXACT, view, 20)
    each = [own(cell.judgements[-1].report) for cell in run.cells]
    assert found.cells[-1] == pytest.approx([fmean(pair) for pair in zip(*each, strict=True)])
    assert found.orders == 2


def test_without_judgements_of_all_edits_there_is_no_matrix(made):
    for schedule in (Schedule(interval=5, evaluate_on="window"), Schedule(batch_size="all")):
        (view,) = views_of(made.run(made.cell("memit", 20, schedule)))
        assert forgetting(view.series[0], EXACT, view, 20) is None


def test_of_an_axis_the_strictest_protocol_is_drawn_and_groups_of_locality_apart():
    asked = ["locality.token:near", "locality.token", "reliability.token", "reliability.exact"]
    asked += ["locality.exact", "locality.exact:kept", "locality.exact:near", "drift", "odd"]
    assert [one.metric for one in drawn(asked)] == [
        "reliability.exact",
        "locality.exact:near",
        "locality.exact:kept",
        "drift",
        "odd",
    ]
    assert measure("locality.kl").rises is False
    assert not measure("locality.kl").share


finite = st.floats(-1e12, 1e12).filter(lambda value: abs(value) > 1e-12 or value == 0)


@given(st.lists(finite, max_size=6), st.booleans())
def test_every_value_and_every_tick_lies_on_its_axis(values, share):
    scale = values_scale(values, share, 180, 14)
    for value in [*values, *scale.ticks()]:
        assert 13.9 <= scale(value) <= 180.1
    assert 1 <= len(scale.ticks()) <= 12


@given(st.integers(1, 10**7))
def test_ticks_of_edits_are_few(edits):
    assert 1 <= len(Scale(low=0, high=edits, start=0, end=300).ticks()) <= 6


@given(st.lists(st.floats(10, 180), max_size=13))
def test_values_behind_lines_do_not_touch_and_keep_their_order(places):
    moved = spread_out(places, 12.5, 10, 180)
    ordered = sorted(moved)
    assert all(b - a >= 12.3 for a, b in pairwise(ordered))
    assert [moved[i] for i in sorted(range(len(places)), key=places.__getitem__)] == ordered


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (12.4, "12.4"),
        (1116.2, "1,116"),
        (1.5e30, "1.50 × 10³⁰"),
        (inf, "∞"),
        (-0.5, "−0.500"),
    ],
)
def test_figures_have_three_digits(value, said):
    assert quantity(value) == said


def test_shares_are_never_rounded_to_all_or_nothing():
    said = [percent(value).replace("\u202f", " ") for value in (1, 0.9999, 0.5, 0.0001, 0)]
    assert said == ["100 %", ">99.9 %", "50.0 %", "<0.1 %", "0 %"]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
single = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), words)
tables = st.recursive(
    st.dictionaries(words, st.one_of(single, st.lists(single, max_size=3)), max_size=3),
    lambda inner: st.dictionaries(
        words, st.one_of(single, inner, st.lists(inner, min_size=1, max_size=2)), max_size=3
    ),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(tables)
def test_a_plan_as_text_reads_back_as_the_plan(plan):
    assert tomllib.loads(plan_text(plan)) == plan


def test_what_a_plan_does_not_say_is_left_out_of_its_text():
    assert plan_text({"limit": None, "methods": ["rome"]}) == 'methods = ["rome"]'
