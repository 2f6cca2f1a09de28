"""Schedules: how many at a time, judged when and on what; what contradicts itself is refused."""

import pytest

from kedit_core import KeditError
from kedit_core.config import load_config
from kedit_core.schedule import Schedule


def points(schedule, count):
    return [(one.at, one.interval, one.first) for one in schedule.points(count)]


def batches(schedule, count):
    return [list(batch) for batch in schedule.batches(count)]


def test_by_default_edits_are_made_and_judged_one_by_one():
    schedule = Schedule()
    assert batches(schedule, 3) == [[0], [1], [2]]
    assert points(schedule, 3) == [(1, 1, 0), (2, 1, 1), (3, 1, 2)]


def test_without_an_interval_every_batch_is_judged():
    assert points(Schedule(batch_size=2), 5) == [(2, 2, 0), (4, 2, 2), (5, 2, 4)]


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("batch", [(4, 4, 2), (8, 4, 6), (9, 4, 8)]),
        ("window", [(4, 4, 0), (8, 4, 4), (9, 4, 8)]),
        ("all", [(4, 4, 0), (8, 4, 0), (9, 4, 0)]),
    ],
)
def test_a_point_judges_the_batch_the_window_or_all_and_the_last_short_window_too(on, expected):
    schedule = Schedule(batch_size=2, interval=4, evaluate_on=on)
    assert points(schedule, 9) == expected
    assert batches(schedule, 9) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


def test_a_sweep_over_intervals_is_one_stream_judged_at_the_points_of_each():
    schedule = Schedule(interval=[1, 3], evaluate_on="window")
    assert points(schedule, 4) == [
        (1, 1, 0),
        (2, 1, 1),
        (3, 1, 2),
        (3, 3, 0),
        (4, 1, 3),
        (4, 3, 3),
    ]


def test_one_batch_of_everything_is_judged_at_the_end():
    schedule = Schedule(batch_size="all")
    assert batches(schedule, 3) == [[0, 1, 2]]
    assert points(schedule, 3) == [(3, 3, 0)]


def test_a_cumulative_judgement_comes_once():
    assert points(Schedule(interval="end", evaluate_on="all"), 5) == [(5, 5, 0)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(2, [[0], [1, 2], [3], [4, 5], [6]]), ("all", [[0], [1, 2, 3], [4, 5, 6]])],
)
def test_batches_never_reach_across_a_stage(size, expected):
    schedule = Schedule(batch_size=size, stages=(1, 4, "all"), evaluate_on="all")
    assert batches(schedule, 7) == expected
    assert points(schedule, 7) == [(1, 1, 0), (4, 3, 0), (7, 3, 0)]


@pytest.mark.parametrize("stages", [(1, 10), (1, 10, 100, "all"), (10,)])
def test_stages_that_ask_for_more_than_there_is_end_with_it(stages):
    assert points(Schedule(stages=stages, evaluate_on="all"), 5)[-1][0] == 5
    assert sum(map(len, batches(Schedule(stages=stages), 5))) == 5


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(batch_size="all"), Schedule(stages=[2])])
def test_nothing_is_made_of_no_requests(schedule):
    assert batches(schedule, 0) == []
    assert points(schedule, 0) == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"batch_size": True}, "batch_size must be 1 or more"),
        ({"batch_size": "every"}, "batch_size must be 1 or more"),
        ({"batch_size": 10, "interval": 15}, "interval 15 is no multiple of batch_size 10"),
        ({"batch_size": 10, "interval": [10, 5]}, "interval 5 is no multiple of batch_size 10"),
        ({"interval": 0}, "interval must be 1 or more"),
        ({"interval": []}, "interval must be 1 or more"),
        ({"batch_size": "all", "interval": 5}, 'interval must be "end"'),
        ({"keep": False, "interval": "end"}, "keep=False takes windows out"),
        ({"keep": False, "evaluate_on": "all"}, "keep=False leaves nothing to judge"),
        ({"keep": False, "interval": [1, 2]}, "each interval is a stream of its own"),
        ({"stages": [3, 1]}, "stages must be growing counts"),
        ({"stages": ["all", 5]}, "stages must be growing counts"),
        ({"stages": [0, 5]}, "stages must be growing counts"),
        ({"stages": [1, 5], "keep": False}, "stages build on each other"),
        ({"stages": [1, 5], "interval": 5}, "give one"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_sentence(fields, complaint):
    with pytest.raises(KeditError, match=complaint):
        Schedule(**fields)
    with pytest.raises(ValueError, match="schedule"):
        load_config(Schedule, fields, where="schedule")
