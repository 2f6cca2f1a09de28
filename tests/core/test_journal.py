"""The journal: every batch once, nothing without its file, and a stream that goes on with the same bits."""

import json
import os
import sqlite3
import subprocess
import sys
from itertools import count

import pytest
from attrs import evolve

from kedit_core.cell_journal import EVERY, CellJournal, unused_files
from kedit_core.digests import digest, state_digest
from kedit_core.errors import JournalError, RunBusyError
from kedit_core.journal import create_journal, open_journal, reading
from kedit_core.limits import Breach, Governor, Limits
from kedit_core.run_folder import RunFolder
from kedit_core.run_reading import read_run
from kedit_core.schedule import Schedule

METRICS = ["reliability.probability", "locality.kl", "drift"]
SETTINGS = {"plan": {"seeds": [1]}, "versions": {}, "machine": {}, "started": "now"}
SCHEDULES = [
    Schedule(interval=2, evaluate_on="all"),
    Schedule(interval=3, evaluate_on="window", keep=False),
    Schedule(batch_size=2, interval=[2, 4], evaluate_on="window"),
]
LOST = ("made", "seconds", "peak_memory", "report")


def run_of(method):
    """Return the settings of a run and its cell."""
    one = {
        "name": "one",
        "model": "tiny",
        "method": method,
        "label": method,
        "config": "{}",
        "schedule": json.dumps({"interval": 1}),
        "seed": None,
    }
    return SETTINGS, [one]


@pytest.fixture
def begun(tmp_path):
    """Return what begins or reopens the run of one cell, and closes it at the end."""
    opened = []

    def begin(method="batcher", *, resume=False):
        folder = tmp_path / "run"
        if opened:
            opened.pop().close()
        made = open_journal(folder) if resume else create_journal(folder, *run_of(method))
        opened.append(made)
        return made

    yield begin
    for one in opened:
        one.close()


def table(journal, name):
    """Return the rows of a table, but for times and peak memory."""
    found = []
    for row in journal.rows(f"SELECT * FROM {name}"):
        plain = {key: row[key] for key in row.keys() if key not in LOST}  # noqa: SIM118
        if name == "judgements":
            report = json.loads(row["report"])
            plain["scores"], plain["whole"] = report["scores"], report["whole"]
        found.append(plain)
    return found


TABLES = ("cells", "edits", "judgements", "checks", "originals")


def contents(journal):
    return {name: table(journal, name) for name in TABLES}


def streamed(editor, journal, requests, schedule, **options):
    record = CellJournal(journal, "one", editor.weights)
    return editor.stream(requests, schedule, metrics=METRICS, record=record, **options)


class Killed(BaseException):
    """The end of the process, as far as anything in it can tell."""


def dying(monkeypatch, target, name, call, *, before):
    """Let the process end at one call of a function, before or after its work."""
    real, calls = getattr(target, name), count(1)

    def dies(*args, **kwargs):
        last = next(calls) == call
        if last and before:
            raise Killed
        found = real(*args, **kwargs)
        if last:
            raise Killed
        return found

    monkeypatch.setattr(target, name, dies)


def test_a_row_says_all_about_its_batch(edit_with, facts, begun):
    editor, requests, journal = edit_with("batcher"), facts(4), begun()
    before = {w: digest(editor.model.get_parameter(w)) for w in paths(editor)}
    list(streamed(editor, journal, requests, Schedule(batch_size=2)))
    (one,) = read_run(journal.folder.path).cells
    assert one.requests == 4
    first, second = one.edits
    assert [r.id for r in first.requests + second.requests] == [r.id for r in requests]
    assert (first.parent, second.parent) == (None, first.delta)
    assert [edit.delta for edit in one.edits] == [delta.id for delta in editor.deltas]
    assert first.before == before
    assert second.before == first.after
    assert second.after == {w: digest(editor.model.get_parameter(w)) for w in paths(editor)}
    assert first.version.startswith("kedit-core ")
    assert first.seconds > 0
    assert first.peak_memory > 0
    for edit in one.edits:
        assert (journal.folder.path / edit.path).name == f"{edit.checksum}.safetensors"


def paths(editor):
    return [layer.down.weight for layer in editor.weights.layout.layers]


def test_what_was_judged_comes_back_from_the_journal(edit_with, facts, begun):
    editor, journal = edit_with("batcher"), begun()
    said = list(streamed(editor, journal, facts(5), Schedule(interval=[1, 2], evaluate_on="all")))
    read = read_run(journal.folder.path).cells[0].judgements
    for one, again in zip(said, read, strict=True):
        assert (one.at, one.interval, one.judged) == (again.at, again.interval, again.judged)
        assert set(one.report.scores) == set(again.report.scores)
        assert evolve(one.report, scores=()) == evolve(again.report, scores=())


def test_originals_are_stored_before_they_are_first_written(edit_with, facts, begun):
    from safetensors.torch import load_file

    editor, journal = edit_with("batcher"), begun()
    first = {w: editor.model.get_parameter(w).detach().clone() for w in paths(editor)}
    list(streamed(editor, journal, facts(3), Schedule()))
    rows = journal.rows("SELECT * FROM originals")
    assert {row["weight"] for row in rows} == set(first)
    for row in rows:
        (tensor,) = load_file(journal.folder.path / row["path"]).values()
        assert tensor.equal(first[row["weight"]])
        assert row["digest"] == digest(tensor)


FOLDER, JOURNAL = "kedit_core.run_folder.RunFolder", "kedit_core.journal.Journal"
DEATHS = [
    *((0, FOLDER, "put", call, before) for call in (1, 5) for before in (True, False)),
    *((0, JOURNAL, "write", call, before) for call in (4, 5, 7) for before in (True, False)),
    *((1, JOURNAL, "write", call, False) for call in (5, 6, 7, 8)),
    *((2, JOURNAL, "write", call, False) for call in (5, 6, 7, 8)),
    *((n, "kedit_core.weights.Weights", "_write", 4 + n, n == 1) for n in range(3)),
    *((n, "kedit_core.workshop.Workshop", "compute", 2, n == 1) for n in range(3)),
    *((n, "kedit_core.cell_journal", "packed_report", 1, n == 1) for n in range(3)),
]


def found_at(path):
    from importlib import import_module

    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


@pytest.fixture(scope="module")
def uninterrupted():
    """Return what keeps the outcome of a stream that nothing stopped, by the number of its schedule."""
    return {}


@pytest.mark.parametrize(
    ("number", "target", "name", "call", "before"),
    DEATHS,
    ids=[f"{n}-{'before' if b else 'after'}-{name}-{c}" for n, _, name, c, b in DEATHS],
)
def test_a_stream_that_died_goes_on_to_the_same_bits_and_the_same_journal(
    edit_with,
    facts,
    begun,
    tmp_path,
    monkeypatch,
    uninterrupted,
    number,
    target,
    name,
    call,
    before,
):
    requests, schedule = facts(4), SCHEDULES[number]
    if number not in uninterrupted:
        whole, other = edit_with("batcher"), create_journal(tmp_path / "whole", *run_of("batcher"))
        list(streamed(whole, other, requests, schedule))
        uninterrupted[number] = contents(other), state_digest(whole.model), whole.deltas
        other.close()
    dead, journal = edit_with("batcher"), begun()
    with monkeypatch.context() as patch:
        dying(patch, found_at(target), name, call, before=before)
        with pytest.raises(Killed):
            list(streamed(dead, journal, requests, schedule))
    again, journal = edit_with("batcher"), begun(resume=True)
    list(streamed(again, journal, requests, schedule))
    assert (contents(journal), state_digest(again.model), again.deltas) == uninterrupted[number]


@pytest.mark.parametrize("method", ["memory", "shrinking"])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_memory_goes_on_from_its_newest_delta(edit_with, facts, begun, logits, method, place):
    requests, whole = facts(5), edit_with(method)
    list(whole.stream(requests, metrics=METRICS))
    editor, journal = edit_with(method), begun(method)
    found = iter(streamed(editor, journal, requests, Schedule()))
    for _ in range(place):
        next(found)
    found.close()
    again, journal = edit_with(method), begun(resume=True)
    list(streamed(again, journal, requests, Schedule()))
    assert [one.id for one in again.deltas] == [one.id for one in whole.deltas]
    assert again.deltas[-1].provenance.step == whole.deltas[-1].provenance.step == 4
    assert logits(again.model).equal(logits(whole.model))


def test_of_a_growing_memory_the_newest_and_every_hundredth_are_stored(
    edit_with, facts, begun, monkeypatch
):
    assert EVERY == 100
    monkeypatch.setattr("kedit_core.cell_journal.EVERY", 3)
    editor, journal = edit_with("memory"), begun("memory")
    list(streamed(editor, journal, facts(8), Schedule()))
    stored = [row["place"] for row in journal.rows("SELECT place FROM edits WHERE path != ''")]
    assert stored == [0, 3, 6, 7]
    assert unused_files(journal) == []
    assert len(list(journal.folder.files())) == 4


def test_the_last_good_state_of_a_memory_stays_stored(edit_with, facts, begun, monkeypatch, logits):
    breach = Breach(limit="retention", allowed=1.0, found=0.0, at=5, since=2)
    monkeypatch.setattr(Governor, "check", lambda *_, at, since: () if at == 2 else (breach,))
    editor, clean = edit_with("memory"), edit_with("memory")
    for request in facts(2):
        clean.edit(request)
    limits = Limits(retention=1.0, every=2)
    journal = begun("memory")
    monkeypatch.setattr(
        "kedit_core.streams.Stream._act_on", lambda *_: (_ for _ in ()).throw(Killed)
    )
    with pytest.raises(Killed):
        list(streamed(editor, journal, facts(6), Schedule(), limits=limits))
    monkeypatch.undo()
    again, journal = edit_with("memory"), begun(resume=True)
    stream = streamed(again, journal, facts(6), Schedule(), limits=limits)
    list(stream)
    assert "after 2 edits" in stream.stopped
    assert logits(again.model).equal(logits(clean.model))
    (row,) = read_run(journal.folder.path).cells
    assert [edit.in_force for edit in row.edits] == [True, True, False, False]
    assert row.stopped == stream.stopped


def test_what_a_stream_warned_of_before_it_was_stopped_is_still_known_after(
    edit_with, facts, begun
):
    limits = Limits(retention=1.0, every=2, action="warn")  # nothing is said by a random model
    found = streamed(edit_with("batcher"), begun(), facts(6), Schedule(), limits=limits)
    for judgement in found:
        if judgement.at == 5:
            break
    again = streamed(edit_with("batcher"), begun(resume=True), facts(6), Schedule(), limits=limits)
    list(again)
    assert [breach.at for breach in again.breaches] == [2, 4, 6]


def test_a_crash_leaves_a_file_without_a_row_and_never_a_row_without_its_file(
    edit_with, facts, begun, monkeypatch
):
    editor, journal = edit_with("batcher"), begun()
    with monkeypatch.context() as patch:
        patch.setattr(CellJournal, "add", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            list(streamed(editor, journal, facts(1), Schedule()))
    assert len(unused_files(journal)) == 1
    list(streamed(edit_with("batcher"), journal, facts(1), Schedule()))
    assert unused_files(journal) == []


def test_a_run_goes_on_only_with_the_requests_that_it_began_with(edit_with, facts, begun):
    journal = begun()
    list(streamed(edit_with("batcher"), journal, facts(2), Schedule()))
    with pytest.raises(JournalError, match="are not those that it began with"):
        list(streamed(edit_with("batcher"), journal, facts(3), Schedule()))


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_damaged_delta_stops_a_run_before_it_goes_on(edit_with, facts, begun, damage):
    journal = begun()
    list(streamed(edit_with("batcher"), journal, facts(2), Schedule()))
    (row, *_) = journal.rows("SELECT path FROM edits")
    path = journal.folder.path / row["path"]
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(JournalError, match=r"missing|damaged"):
        list(streamed(edit_with("batcher"), journal, facts(2), Schedule()))


# Who may write, and where


def test_a_second_process_is_refused_with_the_first_ones_number_and_time(tmp_path, begun):
    journal = begun()
    code = (
        "import sys; from kedit_core.journal import open_journal\n"
        "from kedit_core import KeditError\n"
        "try: open_journal(sys.argv[1])\n"
        "except KeditError as error: print(type(error).__name__, error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(journal.folder.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    since = json.loads((journal.folder.path / "owner.json").read_text())["since"]
    assert ran.stdout.startswith("RunBusyError")
    assert f"process {os.getpid()} works on this run since {since}" in ran.stdout


def test_reading_goes_on_beside_the_writer(edit_with, facts, begun):
    journal = begun()
    stream = iter(streamed(edit_with("batcher"), journal, facts(2), Schedule()))
    next(stream)
    with reading(journal.folder.path) as other:
        assert len(other.rows("SELECT * FROM edits")) == 1
        next(stream)
        assert len(other.rows("SELECT * FROM edits")) == 2


def test_a_run_is_not_begun_over_another(begun, tmp_path):
    begun().close()
    with pytest.raises(JournalError, match="holds a run already"):
        create_journal(tmp_path / "run", SETTINGS, [])
    with pytest.raises(JournalError, match="holds no run"):
        open_journal(tmp_path / "nothing")


def test_where_wal_cannot_work_the_journal_is_kept_without(tmp_path, monkeypatch, begun):
    connect = sqlite3.connect
    monkeypatch.setattr(  # the only lock file of this system has no shared memory, as on a network
        sqlite3, "connect", lambda place, **more: connect(f"{place}&vfs=unix-dotfile", **more)
    )
    journal = begun()
    ((mode,),) = journal.rows("PRAGMA journal_mode")
    assert mode == "delete"
    assert journal.setting("plan") == SETTINGS["plan"]
    journal.write(("INSERT INTO run VALUES ('x', '1')", ()))
    monkeypatch.undo()


def test_a_journal_is_kept_with_a_log_that_others_read_beside(begun):
    ((mode,),) = begun().rows("PRAGMA journal_mode")
    assert mode == "wal"


def test_a_file_that_is_no_database_gets_one_sentence(tmp_path, begun):
    begun().close()
    (tmp_path / "run" / "journal.sqlite").write_bytes(b"nonsense" * 100)
    with pytest.raises(JournalError, match="not a database"):
        open_journal(tmp_path / "run")


def test_what_is_stored_twice_is_there_once(tmp_path):
    folder = RunFolder(tmp_path)
    folder.acquire()
    one, other = (folder.put(lambda path: path.write_bytes(b"the same") and None) for _ in range(2))
    assert one == other
    assert list(folder.files()) == [one.path]
    with pytest.raises(RunBusyError):
        RunFolder(tmp_path).acquire()
    folder.release()
