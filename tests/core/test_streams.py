"""Streams: each schedule against a loop written out by hand, and what stops a stream half way."""

import pytest
import torch
from attrs import evolve

from kedit_core import KeditError, Probe
from kedit_core.digests import state_digest
from kedit_core.limits import Limits
from kedit_core.record import Record
from kedit_core.schedule import Schedule

METRICS = ["reliability.probability", "generalization.probability", "locality.kl"]
METHODS = ("batcher", "memory")


@pytest.fixture
def asked(facts):
    """Return requests whose neighbours are judged too."""

    def make(count):
        probes = (Probe(prompt="the capital of land30 is", answers="Oslo"),)
        return [evolve(one, locality=probes) for one in facts(count)]

    return make


def by_stream(editor, requests, schedule):
    """Return what a stream judges: after how many, of what interval, which scores."""
    found = editor.stream(requests, schedule, metrics=METRICS)
    return [(one.at, one.interval, one.report.scores) for one in found]


def scores(editor, requests):
    return editor.evaluate(requests, METRICS).scores


# The rows of the table of schedules, each against its loop


def restored_after_each(editor, requests):
    for number, request in enumerate(requests, 1):
        editor.edit(request)
        yield number, 1, scores(editor, [request])
        editor.undo()


def continual(editor, requests):
    for number, request in enumerate(requests, 1):
        editor.edit(request)
        yield number, 1, scores(editor, [request])


def cumulative(editor, requests):
    for request in requests:
        editor.edit(request)
    yield len(requests), len(requests), scores(editor, requests)


def windows_of_three(editor, requests):
    for start in range(0, len(requests), 3):
        some = requests[start : start + 3]
        for request in some:
            editor.edit(request)
        yield start + len(some), 3, scores(editor, some)


def windows_of_three_taken_out(editor, requests):
    for start in range(0, len(requests), 3):
        some = requests[start : start + 3]
        for request in some:
            editor.edit(request)
        yield start + len(some), 3, scores(editor, some)
        while editor.deltas:
            editor.undo()


def all_so_far_after_batches_of_two(editor, requests):
    for start in range(0, len(requests), 2):
        editor.edit(requests[start : start + 2])
        end = min(start + 2, len(requests))
        yield end, 2, scores(editor, requests[:end])


def at_once(editor, requests):
    editor.edit(requests)
    yield len(requests), len(requests), scores(editor, requests)


def in_stages(editor, requests):
    for start, end in ((0, 1), (1, 4), (4, len(requests))):
        editor.edit(requests[start:end])
        yield end, end - start, scores(editor, requests[start:end])


TABLE = [
    (Schedule(batch_size=1, interval=1, keep=False), restored_after_each),
    (Schedule(batch_size=1, interval=1, evaluate_on="batch"), continual),
    (Schedule(interval="end", evaluate_on="all"), cumulative),
    (Schedule(interval=3, evaluate_on="window"), windows_of_three),
    (Schedule(interval=3, evaluate_on="window", keep=False), windows_of_three_taken_out),
    (Schedule(batch_size=2, evaluate_on="all"), all_so_far_after_batches_of_two),
    (Schedule(batch_size="all", interval="end"), at_once),
    (Schedule(batch_size="all", stages=(1, 4, "all")), in_stages),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("schedule", "loop"), TABLE, ids=[loop.__name__ for _, loop in TABLE])
def test_a_schedule_is_the_loop_that_it_stands_for(
    edit_with, asked, schedule, loop, method, logits
):
    requests = asked(7)
    streaming, looping = edit_with(method), edit_with(method)
    assert by_stream(streaming, requests, schedule) == list(loop(looping, requests))
    assert [one.id for one in streaming.deltas] == [one.id for one in looping.deltas]
    assert state_digest(streaming.model) == state_digest(looping.model)
    assert torch.equal(logits(streaming.model), logits(looping.model))


def test_several_intervals_are_one_stream_judged_at_all_their_points(edit_with, asked):
    requests = asked(5)
    both = by_stream(edit_with(), requests, Schedule(interval=[1, 2], evaluate_on="window"))
    for interval in (1, 2):
        own = Schedule(interval=interval, evaluate_on="window")
        expected = by_stream(edit_with(), requests, own)
        assert [one for one in both if one[1] == interval] == expected


def test_what_two_intervals_judge_alike_is_asked_once(edit_with, asked, monkeypatch):
    editor, asks = edit_with(), []
    evaluate = editor.evaluate
    monkeypatch.setattr(editor, "evaluate", lambda *a: asks.append(a) or evaluate(*a))
    schedule = Schedule(interval=[1, 2], evaluate_on="all")
    assert len(list(editor.stream(asked(2), schedule, metrics=METRICS))) == 3
    assert len(asks) == 2


def test_the_baseline_is_the_model_before_the_first_edit(edit_with, asked):
    requests, editor = asked(4), edit_with()
    expected = editor.evaluate(requests, ["reliability.probability"]).scores
    stream = editor.stream(requests, Schedule(), metrics=["reliability.probability"])
    last = list(stream)[-1]
    assert stream.before().scores == expected
    assert last.report.means()["reliability.probability"] != expected[-1].value


# What stops a stream


class Full(Record):
    """A record that fails after some batches, before or after the delta is applied."""

    def __init__(self, room, fails, error):
        self.room, self.fails, self.error = room, fails, error

    def keep(self, delta):
        self._take("keep")

    def add(self, made):
        self._take("add")
        self.room -= 1

    def _take(self, what):
        if self.room == 0 and what == self.fails:
            raise self.error


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("fails", ["keep", "add"])
@pytest.mark.parametrize("method", METHODS)
def test_a_record_that_cannot_be_written_stops_the_stream_between_two_edits(
    edit_with, asked, method, fails, error
):
    requests, editor, other = asked(4), edit_with(method), edit_with(method)
    record = Full(2, fails, error)
    with pytest.raises(type(error)):
        list(editor.stream(requests, Schedule(), metrics=METRICS, record=record))
    for request in requests[:2]:
        other.edit(request)
    assert [one.id for one in editor.deltas] == [one.id for one in other.deltas]
    assert state_digest(editor.model) == state_digest(other.model)


def test_a_stream_is_gone_through_once(edit_with, asked):
    stream = edit_with().stream(asked(1))
    list(stream)
    with pytest.raises(KeditError, match="gone through once"):
        list(stream)


def test_what_cannot_be_made_is_refused_before_the_first_edit(edit_with, asked, facts):
    editor = edit_with("writer")
    with pytest.raises(KeditError, match="one request at a time"):
        editor.stream(asked(4), Schedule(batch_size=2))
    with pytest.raises(KeditError, match="is to be answered"):
        editor.stream([*facts(2), evolve(facts(1)[0], target_new="Oslo")])
    assert editor.deltas == ()


def test_a_recorded_stream_begins_with_the_unedited_model(edit_with, facts):
    editor = edit_with()
    editor.edit(facts(1)[0])
    with pytest.raises(KeditError, match="begins with the unedited model"):
        editor.stream(facts(2, start=3), record=Record())


# Conflicts and limits on the way


def test_the_newest_edit_takes_the_place_of_the_one_in_force(edit_with, facts):
    old, other = facts(2)
    new = evolve(old, target_new="Riga")
    editor, clean = edit_with("batcher"), edit_with("batcher")
    editor.edit(old)
    stream = editor.stream([other, new], conflicts="newest")
    list(stream)
    for request in (other, new):
        clean.edit(request)
    held = [request.id for delta in editor.deltas for request in delta.requests]
    assert held == [other.id, new.id]
    assert [one.kept for one in stream.decisions] == [new.id]


@pytest.mark.parametrize("method", METHODS)
def test_a_limit_that_breaks_takes_the_model_back_to_its_last_good_state(edit_with, asked, method):
    requests = asked(6)
    limits = Limits(retention=1.0, every=2)  # nothing is ever said by a random model
    editor = edit_with(method)
    before = state_digest(editor.model)
    stream = editor.stream(requests, Schedule(interval=2), limits=limits)
    found = list(stream)
    assert [one.at for one in found] == [2]
    assert [breach.limit for breach in found[0].breaches] == ["retention"]
    assert "back to what it was after 0 edits" in stream.stopped
    assert editor.deltas == ()
    assert state_digest(editor.model) == before


def breaking_after(monkeypatch, good):
    """Let the checks of a governor pass so many times."""
    from kedit_core.limits import Governor

    check, passed = Governor.check, []

    def now_and_then(self, requests, *, at, since):
        passed.append((at, since))
        return () if len(passed) <= good else check(self, requests, at=at, since=since)

    monkeypatch.setattr(Governor, "check", now_and_then)
    return passed


@pytest.mark.parametrize("method", METHODS)
def test_the_state_that_a_rollback_goes_to_is_the_one_that_was_checked(
    edit_with, asked, method, monkeypatch, logits
):
    requests, editor, clean = asked(6), edit_with(method), edit_with(method)
    checks = breaking_after(monkeypatch, 2)
    stream = editor.stream(requests, Schedule(interval=2), limits=Limits(retention=1.0, every=2))
    assert [one.at for one in stream] == [2, 4, 6]
    assert checks == [(2, 0), (4, 2), (6, 4)]
    for request in requests[:4]:
        clean.edit(request)
    assert [one.id for one in editor.deltas] == [one.id for one in clean.deltas]
    assert torch.equal(logits(editor.model), logits(clean.model))


def test_a_limit_may_stop_a_stream_or_only_warn(edit_with, asked, caplog):
    stopping, warning = edit_with(), edit_with()
    stream = stopping.stream(asked(4), limits=Limits(retention=1.0, every=2, action="stop"))
    assert [one.at for one in stream] == [1, 2]
    assert len(stopping.deltas) == 2
    stream = warning.stream(asked(4), limits=Limits(retention=1.0, every=2, action="warn"))
    assert [one.at for one in stream] == [1, 2, 3, 4]
    assert stream.stopped == ""
    assert len(stream.breaches) == 2
    assert "of the edits still hold" in caplog.text


def test_every_stage_is_checked_before_the_next_begins(edit_with, asked, monkeypatch):
    checks = breaking_after(monkeypatch, 1)
    editor = edit_with("batcher")
    schedule = Schedule(batch_size="all", stages=(1, 3, "all"), evaluate_on="all")
    stream = editor.stream(asked(6), schedule, limits=Limits(retention=1.0, every=1000))
    assert [one.at for one in stream] == [1, 3]
    assert [at for at, _ in checks] == [1, 3]
    assert [len(delta.requests) for delta in editor.deltas] == [1]
