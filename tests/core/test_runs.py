"""Runs: a plan carried out cell by cell, shown while it goes, gone on with after it was stopped."""

import io
import json

import pytest
from rich.console import Console

from kedit_core import KeditError, hookimpl
from kedit_core.cli.live import LiveTable, duration
from kedit_core.cli.results import document, results
from kedit_core.digests import state_digest
from kedit_core.errors import JournalError
from kedit_core.plans import plan_from
from kedit_core.run_reading import read_run
from kedit_core.runs import Run, Watcher, in_order

PLAN = {
    "model": "tiny:llama",
    "requests": "facts",
    "method": ["writer", "batcher"],
    "schedule": {"interval": 2, "evaluate_on": "all"},
    "seeds": [0, 1],
    "metrics": ["reliability.exact", "reliability.probability"],
}


@pytest.fixture
def opened(plugins, tiny, tokenizer):
    """Return the models that runs open, in order: ``tiny:llama`` and ``tiny:gpt2``."""
    from types import ModuleType

    found, module = [], ModuleType("opener")

    @hookimpl
    def open_model(source):
        if not source.startswith("tiny:"):
            return None
        found.append(tiny(source.removeprefix("tiny:")))
        return found[-1], tokenizer

    module.open_model = open_model
    plugins.register(module, "opener")
    return found


@pytest.fixture
def carry_out(opened, plugins, facts, tmp_path):
    """Return what carries a plan out in a folder and returns what the run says."""

    def out(plan=PLAN, folder="run", count=4, **options):
        run = Run(plan_from(plan), tmp_path / folder, plugins=plugins, **options)
        run.carry_out(facts(count))
        return read_run(tmp_path / folder)

    return out


def test_every_stream_of_a_plan_is_made_and_judged(carry_out):
    run = carry_out()
    assert [cell.name for cell in run.cells] == [
        "writer+seed=0",
        "writer+seed=1",
        "batcher+seed=0",
        "batcher+seed=1",
    ]
    for cell in run.cells:
        assert (cell.requests, len(cell.edits), cell.finished, cell.stopped) == (4, 4, True, "")
        assert [(one.at, len(one.judged)) for one in cell.judgements] == [(2, 2), (4, 4)]
        assert all(edit.in_force for edit in cell.edits)
        assert set(cell.before.means()) == {"reliability.exact", "reliability.probability"}
    assert run.plan == json.loads(json.dumps(run.plan))
    assert {"kedit-core", "torch", "transformers"} <= set(run.versions)
    assert run.machine["processor"]


def test_a_seed_is_an_order(carry_out, facts):
    run, names = carry_out(), [one.id for one in facts(4)]
    for cell in run.cells:
        made = [request.id for edit in cell.edits for request in edit.requests]
        assert made == [one.id for one in in_order(facts(4), cell.seed)]
        assert sorted(made) == sorted(names)
    assert in_order(facts(4), None) == facts(4)


def test_streams_of_one_model_share_it_and_leave_it_unedited(carry_out, opened, tiny):
    carry_out({**PLAN, "model": ["tiny:llama", "tiny:gpt2"]})
    assert len(opened) == 2
    for model, family in zip(opened, ("llama", "gpt2"), strict=True):
        assert state_digest(model) == state_digest(tiny(family))


def test_the_examples_say_what_was_and_what_is_said(carry_out):
    (cell, *_) = carry_out().cells
    kinds = {example.kind for example in cell.examples}
    assert kinds == {"edit", "paraphrase"}
    assert {example.request for example in cell.examples} <= {
        request.id for edit in cell.edits for request in edit.requests
    }


class Stopping(Watcher):
    """Stops a run at its nth judgement."""

    def __init__(self, after):
        self.after, self.seen, self.ended = after, [], []

    def judged(self, cell, judgement):
        self.seen.append((cell.name, judgement.at))
        if len(self.seen) == self.after:
            raise KeyboardInterrupt

    def end(self, cell, stopped):
        self.ended.append(cell.name)


def plain(run):
    """Return what a run says, but for times and memory."""
    return [
        (
            cell.name,
            [(e.delta, e.parent, e.before, e.after, e.path, e.in_force) for e in cell.edits],
            [
                (j.at, j.interval, j.judged, sorted(map(repr, j.report.scores)))
                for j in cell.judgements
            ],
            cell.examples,
            cell.finished,
        )
        for cell in run.cells
    ]


@pytest.mark.parametrize("after", [1, 6])
def test_a_run_that_was_stopped_goes_on_where_it_was(carry_out, after):
    whole = carry_out(folder="whole")
    with pytest.raises(KeyboardInterrupt):
        carry_out(watcher=Stopping(after))
    watcher = Stopping(0)
    again = carry_out(resume=True, watcher=watcher)
    assert plain(again) == plain(whole)
    done = (after - 1) // 2
    assert len(watcher.ended) == 4 - done


def test_a_finished_run_is_left_as_it_is(carry_out, opened):
    first = carry_out()
    assert plain(carry_out(resume=True)) == plain(first)
    assert len(opened) == 1


def test_a_run_is_begun_once_and_gone_on_with_by_its_own_plan(carry_out):
    carry_out()
    with pytest.raises(JournalError, match="holds a run already"):
        carry_out()
    with pytest.raises(JournalError, match="begun with another plan"):
        carry_out({**PLAN, "seeds": [0]}, resume=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "nobody"}, "unknown method 'nobody'"),
        ({"method": "writer", "schedule": {"batch_size": 2}}, "one request at a time"),
        ({"method": [{"name": "writer", "config": {"scal": 1}}]}, "did you mean 'scale'"),
        ({"model": "nowhere-at-all"}, "nowhere-at-all"),
        ({"dtype": "float7"}, "unknown dtype 'float7'"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_edit(carry_out, tmp_path, changes, complaint):
    with pytest.raises(KeditError, match=complaint):
        carry_out({**PLAN, **changes})


def test_a_table_shows_how_far_every_stream_is(carry_out):
    table = LiveTable(plan_from(PLAN).cells())
    carry_out(progress=table, watcher=table.watcher)
    text = shown(table.table())
    assert text.count("4/4") == 4
    assert text.count("done") == 4
    assert "REL %" in text


def test_results_take_orders_together(carry_out):
    run = carry_out()
    text = shown(results(run))
    assert text.count("±") == 2
    assert "ORDERS" in text
    assert "SCHEDULE" not in text
    said = json.loads(json.dumps(document(run)))
    assert len(said["streams"]) == 4
    assert [one["orders"] for one in said["orders"]] == [2] * 4
    assert said["streams"][0]["judgements"][0]["means"].keys() == {
        "reliability.exact",
        "reliability.probability",
    }


def shown(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (11_100, "3 h 05 min")]
)
def test_a_time_is_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text
