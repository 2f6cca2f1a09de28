"""Retention and orders: what a forgetting matrix and its areas come to, counted by hand."""

from math import isnan, nan

import pytest

from kedit_core import retention
from kedit_core.judgements import Judgement
from kedit_core.orders import over_orders
from kedit_core.reports import EvalReport, Score
from kedit_core.run_records import CellRecord
from kedit_core.schedule import Schedule

EXACT = "reliability.exact"


def judged(*values, at=None, interval=2, metric=EXACT):
    """Return a judgement of edits a, b, c … with these scores; None has no data."""
    names = "abcdefgh"[: len(values)]
    pairs = zip(names, values, strict=True)
    scores = tuple(Score(metric=metric, request=n, value=v) for n, v in pairs if v is not None)
    report = EvalReport(method="m", step=len(values), scores=scores)
    return Judgement(at=at or len(values), interval=interval, judged=names, report=report)


def test_a_row_says_how_each_block_of_edits_fares_at_a_judgement():
    found = retention([judged(1, 1), judged(1, 0, 1, 1), judged(0, 0, 1, 0, 1, 1)])
    assert found.at == (2, 4, 6)
    assert found.matrix[0][0] == 1.0
    assert found.matrix[1][:2] == (0.5, 1.0)
    assert found.matrix[2] == (0.0, 0.5, 1.0)
    assert isnan(found.matrix[0][1])


def test_an_area_is_the_mean_height_since_the_block_was_made():
    found = retention([judged(1, 1), judged(1, 0, 1, 1), judged(0, 0, 1, 0, 1, 1)])
    assert found.areas == pytest.approx(((0.75 + 0.25) / 2, 0.75, 1.0))
    assert found.area == pytest.approx((0.5 + 0.75 + 1.0) / 3)
    assert found.forgotten == pytest.approx((1.0, 0.5, 0.0))


def test_blocks_count_by_their_edits():
    found = retention([judged(0), judged(0, 1, 1, 1)])
    assert found.area == pytest.approx(3 / 4)


def test_what_was_not_judged_on_all_edits_does_not_count():
    window = Judgement(
        at=4, interval=2, judged="cd", report=EvalReport(method="", step=4, scores=())
    )
    assert retention([judged(1, 1), window, judged(1, 1, 1, 1)]).at == (2, 4)


def test_two_intervals_that_end_together_are_one_row():
    assert retention([judged(1, 0), judged(1, 0, interval=1)]).at == (2,)


def test_what_has_no_data_leaves_no_mark():
    found = retention([judged(None, None), judged(None, None, 1, None)])
    assert isnan(found.areas[0])
    assert found.area == 1.0
    nothing = retention([])
    assert (nothing.at, nothing.matrix) == ((), ())
    assert isnan(nothing.area)


def cell(seed, *judgements, **changes):
    return CellRecord(
        **{
            "name": f"memit+seed={seed}",
            "model": "atlas:gpt2",
            "method": "memit",
            "label": "memit",
            "config": {},
            "schedule": Schedule(interval=2),
            "seed": seed,
            "requests": 4,
            "judgements": judgements,
            **changes,
        }
    )


def test_orders_of_one_stream_become_mean_and_spread():
    first, last = over_orders(
        [
            cell(0, judged(1, 1), judged(1, 0, 1, 0)),
            cell(1, judged(1, 0), judged(1, 1, 1, 1)),
        ]
    )
    assert (first.at, last.at) == (2, 4)
    assert (first.orders, last.orders) == (2, 2)
    assert last.mean[EXACT] == pytest.approx(0.75)
    assert last.deviation[EXACT] == pytest.approx((0.5**2 / 2) ** 0.5)


def test_what_differs_in_more_than_its_seed_is_not_mixed():
    apart = [cell(0, judged(1, 1)), cell(1, judged(0, 0), label="memit λ 1")]
    assert [one.mean[EXACT] for one in over_orders(apart)] == [1.0, 0.0]
    (alone, _) = over_orders(apart)
    assert (alone.orders, alone.deviation[EXACT]) == (1, 0.0)


def test_an_order_that_ended_early_is_missing_where_it_did_not_get_to():
    found = over_orders([cell(0, judged(1, 1), judged(1, 1, 1, 1)), cell(1, judged(0, nan))])
    assert [(one.at, one.orders) for one in found] == [(2, 2), (4, 1)]
