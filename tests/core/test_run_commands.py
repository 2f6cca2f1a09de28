"""kedit log, undo and verify, and runs in the place of delta files."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kedit_core import Editor, Plugins, TensorCache, deltas_of, export_merged, read_run
from kedit_core.cell_journal import unused_files
from kedit_core.cli import main
from kedit_core.delta_files import load_deltas, save_deltas
from kedit_core.digests import state_digest
from kedit_core.errors import (
    ExportError,
    JournalError,
    ModelError,
    NotInForceError,
    RunBusyError,
    UnknownCellError,
)
from kedit_core.journal import Journal, open_journal, reading
from kedit_core.run_originals import restore
from kedit_core.run_undo import undo, undo_all
from kedit_core.verifying import verify


@pytest.fixture(autouse=True)
def installed(plugins, monkeypatch):
    """Let the fake methods be the ones that are installed."""
    monkeypatch.setattr(Plugins, "installed", classmethod(lambda cls: plugins))


@pytest.fixture
def kedit(capsys, monkeypatch):
    """Return what runs the command line with the fake methods, and gives its code and its two streams."""
    monkeypatch.setenv("COLUMNS", "220")

    def run(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def opened(model_folder, plugins, tmp_path):
    """Return what opens an editor of the runs' model."""

    def build(folder=model_folder, **options):
        cache = TensorCache(tmp_path / "cache")
        return Editor.from_pretrained(folder, plugins=plugins, cache=cache, **options)

    return build


def edits(run, cell=0):
    return read_run(run).cells[cell].edits


def ids(run, cell=0):
    return [edit.delta for edit in edits(run, cell)]


def in_force(run, cell=0):
    return [edit.delta for edit in edits(run, cell) if edit.in_force]


def change(run, statement, *values):
    with closing(sqlite3.connect(run / "journal.sqlite")) as connection, connection:
        connection.execute(statement, values)


def copied(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- deltas of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["writer", "memory"])
def test_the_deltas_of_a_run_make_the_model_that_the_run_made(
    run_of, opened, facts, logits, method, model_folder
):
    run = run_of(method)
    editor = opened(method=method)
    for fact in facts(4):
        editor.edit(fact)
    wanted = logits(editor.model)
    again = opened()
    again.go_to(deltas_of(run))
    assert torch.equal(logits(again.model), wanted)
    assert [delta.id for delta in again.deltas] == [delta.id for delta in editor.deltas]


def test_a_run_is_loaded_as_a_file_is(run_of, opened):
    run = run_of()
    editor = opened()
    assert [delta.id for delta in editor.load(run)] == ids(run)
    assert [delta.id for delta in editor.deltas] == ids(run)


def test_of_several_cells_one_must_be_named(run_of, opened):
    run = run_of(["writer", "memory"], seeds=[0, 1])
    names = [cell.name for cell in read_run(run).cells]
    with pytest.raises(UnknownCellError, match=r"has 4 cells, name one: writer\+seed=0, writer"):
        deltas_of(run)
    with pytest.raises(UnknownCellError, match=r"did you mean 'writer\+seed=1'"):
        opened().load(run / "writer+seed=2")
    for place, name in enumerate(names):
        found = opened().load(run / name)
        assert [delta.id for delta in found] == in_force(run, place)[-len(found) :]


def test_a_cell_whose_name_holds_slashes_is_named_by_a_path(
    run_of, opened, model_folder, monkeypatch
):
    shutil.copytree(model_folder, model_folder.parent / "other")
    run = run_of("writer", model=[model_folder, model_folder.parent / "other"], count=1)
    name = read_run(run).cells[1].name
    assert name.startswith("/")
    (delta,) = opened().load(f"{run}/{name}")
    assert delta.id == ids(run, 1)[0]


def test_a_run_without_edits_in_force_is_no_delta(run_of, opened):
    run = run_of(schedule={"keep": False}, count=2)
    assert deltas_of(run) == ()
    with pytest.raises(NotInForceError, match="nothing to put in"):
        opened().load(run)


def test_a_folder_that_is_no_run_is_no_delta(opened, tmp_path):
    with pytest.raises(JournalError, match="holds no run, and is no delta file"):
        opened().load(tmp_path)


def test_a_memorys_file_that_goes_while_it_is_read_is_not_missed(run_of, monkeypatch):
    run = run_of("memory")
    newest = edits(run)[-1]
    with reading(run) as journal:
        (row,) = journal.rows("SELECT * FROM edits WHERE place = 3")
    hidden = run / "hidden"
    (run / newest.path).rename(hidden)
    change(run, "UPDATE edits SET in_force = 0 WHERE place > 0")
    rows = Journal.rows

    def as_before(journal, query, *values):
        monkeypatch.setattr(Journal, "rows", rows)
        return [row]

    def cells_first(journal, query, *values):
        if "FROM cells" not in query and "FROM edits" in query:
            return as_before(journal, query, *values)
        return rows(journal, query, *values)

    monkeypatch.setattr(Journal, "rows", cells_first)
    assert [delta.id for delta in deltas_of(run)] == ids(run)[:1]


@pytest.mark.parametrize("command", ["evaluate", "export", "edit", "scope"])
def test_commands_take_a_run_for_a_delta(kedit, run_of, model_folder, tmp_path, command):
    run = run_of("writer", count=2)
    requests = tmp_path / "requests.jsonl"
    fact = {"prompt": "the capital of {} is", "subject": "land9", "target_new": "Rome"}
    requests.write_text(json.dumps(fact))
    out = tmp_path / "out"
    more = {
        "evaluate": ["--requests", requests, "--json"],
        "export": ["--to", "merged", "--out", out],
        "edit": ["--method", "writer", "--requests", requests, "--out", out],
        "scope": ["--prompts", requests],
    }[command]
    code, said, err = kedit(command, model_folder, "--delta", f"{run}/writer", *more)
    if command == "scope":
        assert (code, "no delta in force says what is in its scope" in err) == (2, True)
        return
    assert (code, err) == (0, "")
    if command == "evaluate":
        assert "writer" in said
    if command == "edit":
        assert [delta.id for delta in load_deltas(out)][:2] == ids(run)
    if command == "export":
        assert "2 edits" in said


# --- log ---------------------------------------------------------------------------------------


def test_log_shows_the_cells_of_a_run(kedit, run_of, model_folder):
    run = run_of(["writer", "memory"], schedule={"interval": 2}, seeds=[3])
    code, out, err = kedit("log", run)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["CELL"].split()[:3] == ["CELL", "METHOD", "MADE"]  # what all share has no column
    assert out.startswith(f"{model_folder}, begun 20")
    for method in ("writer", "memory"):
        line = lines[f"{method}+seed=3"]
        assert re.search(rf"{method}\s+4/4\s+4\s+\d+\.0\s+\d+\.0\s", line)
        assert line.rstrip().endswith("finished")


def test_log_shows_the_edits_of_a_cell(kedit, run_of):
    run = run_of("batcher", schedule={"batch_size": 2})
    undo(run)
    code, out, err = kedit("log", run, "--cell", "batcher")
    assert (code, err) == (0, "")
    first, second = (line.split() for line in out.splitlines()[1:3])
    assert first[:2] == ["0", ids(run)[0]]
    assert " ".join(first[2:-2]) == "the capital of land0 is → Paris +1"
    assert (first[-1], second[-1]) == ("yes", "no")


def test_log_in_json_says_the_same(kedit, run_of):
    run = run_of("batcher", schedule={"batch_size": 2})
    _, out, _ = kedit("log", run, "--json")
    (cell,) = json.loads(out)["cells"]
    assert (cell["made"], cell["in_force"], cell["state"]) == (4, 4, "finished")
    assert set(cell["scores"]) == {"reliability.exact", "generalization.exact"}
    _, out, _ = kedit("log", run, "--cell", "batcher", "--json")
    assert [edit["delta"] for edit in json.loads(out)["edits"]] == ids(run)


def test_log_tells_what_goes_on_what_stopped_and_what_is_to_come(kedit, run_of):
    run = run_of("writer", seeds=[0, 1, 2])
    change(run, "UPDATE cells SET stopped = 'too much was lost' WHERE place = 0")
    change(run, "UPDATE cells SET finished = 0 WHERE place > 0")
    change(run, "UPDATE cells SET requests = NULL, before = NULL WHERE place = 2")
    change(run, "DELETE FROM edits WHERE cell = 'writer+seed=2'")
    change(run, "DELETE FROM judgements WHERE cell = 'writer+seed=2'")
    code, out, _ = kedit("log", run)
    states = [line.rstrip() for line in out.splitlines()[3:6]]
    assert code == 0
    assert states[0].endswith("stopped")
    assert "writer+seed=0 stopped: too much was lost" in out
    assert states[1].endswith("going on")
    assert states[2].endswith("to come")
    assert "kedit run PLAN --resume goes on" in out
    with closing(open_journal(run)):
        assert f"process {os.getpid()} works on it since 20" in kedit("log", run)[1]


def test_log_reads_while_another_process_writes(kedit, run_of):
    run = run_of()
    with closing(open_journal(run)) as journal:
        connection = journal._connection
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE edits SET in_force = 0")
        (cell,) = json.loads(kedit("log", run, "--json")[1])["cells"]
        assert cell["in_force"] == 4
        connection.execute("COMMIT")
        (cell,) = json.loads(kedit("log", run, "--json")[1])["cells"]
        assert cell["in_force"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_who_may_only_read_a_run_can_read_its_log(run_of):
    code = (
        "import os, sys\nfrom kedit_core import read_run\nfrom kedit_core.journal import undisturbed\n"
        "found = read_run\nos.setuid(65534)\nwith undisturbed(sys.argv[1]) as journal:\n"
        "    print(len(found(sys.argv[1]).cells), len(journal.rows('SELECT * FROM edits')))"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own folders are closed to others
        run = shutil.copytree(run_of(count=1), Path(folder) / "run")
        command = [sys.executable, "-c", code, str(run)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 1\n"), done.stderr


def test_log_needs_no_torch(run_of):
    run = run_of(count=1)
    code = (
        "import sys; from kedit_core.cli import main\ntry: main(['log', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join(m for m in ('torch', 'transformers', 'numpy') if m in sys.modules) or 0)"
    )
    command = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "writer" in done.stdout


# --- undo --------------------------------------------------------------------------------------


def test_undo_takes_the_newest_edit_of_weights_out_of_the_run(run_of, opened, facts, state_of):
    run = run_of()
    before = ids(run)
    assert undo(run).deltas == (before[-1],)
    assert in_force(run) == before[:3]
    editor = opened(method="writer")
    for fact in facts(3):
        editor.edit(fact)
    again = opened()
    again.load(run)
    assert state_digest(again.model) == state_digest(editor.model)


def test_undo_takes_any_edit_of_weights_out(run_of, opened):
    run = run_of()
    first, second, third, fourth = ids(run)
    assert undo(run, second).left == 3
    assert in_force(run) == [first, third, fourth]
    assert [delta.id for delta in opened().load(run)] == [first, third, fourth]


def test_a_run_from_which_an_edit_was_taken_goes_on_without_it(run_of, facts, plugins, opened):
    run = run_of()
    undo(run, ids(run)[1])
    done = ids(run)
    change(run, "UPDATE cells SET finished = 0")
    change(run, "DELETE FROM judgements WHERE at = 4")
    change(run, "DELETE FROM edits WHERE place = 3")
    from kedit_core import Run
    from kedit_core.plans import plan_from

    plan = plan_from(read_run(run).plan)
    Run(plan, run, resume=True).carry_out(facts(4))
    assert ids(run)[:3] == done[:3]
    assert in_force(run) == [done[0], done[2], ids(run)[3]]
    assert edits(run)[3].parent == done[2]


def test_undoing_the_newest_of_a_memory_makes_the_one_before_again(run_of, opened, logits, facts):
    run = run_of("memory", count=5)
    made = ids(run)
    assert [bool(edit.path) for edit in edits(run)] == [True, False, False, False, True]
    done = undo(run)
    assert (done.deltas, done.left, done.made_again) == ((made[4],), 4, 3)
    newest = edits(run)[3]
    assert newest.path
    editor = opened(method="memory")
    for fact in facts(4):
        editor.edit(fact)
    again = opened()
    assert [delta.id for delta in again.load(run)] == [made[3]]
    assert torch.equal(logits(again.model), logits(editor.model))
    assert undo(run).made_again == 2
    assert undo(run, made[2]).made_again == 1
    assert undo(run).made_again == 0
    assert undo(run).left == 0
    with pytest.raises(NotInForceError, match="memory has no edit to undo"):
        undo(run)


def test_a_memory_without_any_stored_file_before_is_made_from_the_start(run_of):
    run = run_of("memory")
    with reading(run) as journal:
        (row,) = journal.rows("SELECT path FROM edits WHERE place = 0")
    (run / row["path"]).unlink()
    assert undo(run).made_again == 3


def test_a_memory_that_comes_out_otherwise_is_not_believed(run_of, tiny, model_folder):
    run = run_of("memory")
    before = edits(run)
    change(run, """UPDATE edits SET config = '{"scale": 0.2}' WHERE place = 2""")
    with pytest.raises(JournalError, match="batch 2 of memory was dropped and comes out otherwise"):
        undo(run)
    assert edits(run) == before


def test_a_memory_whose_model_is_gone_cannot_be_made_again(run_of, model_folder):
    run = run_of("memory")
    shutil.rmtree(model_folder)
    with pytest.raises(ModelError, match="there is no such folder"):
        undo(run)
    assert len(in_force(run)) == 4


def test_an_earlier_state_of_a_memory_is_not_taken_out(run_of):
    run = run_of("memory")
    with pytest.raises(JournalError, match=r"all later ones hold its edits; .* Editor\.remove"):
        undo(run, ids(run)[1])
    assert len(in_force(run)) == 4


def test_undo_of_all_takes_out_every_cell_or_the_one_that_is_named(run_of):
    run = run_of(["writer", "memory"])
    assert [one.cell for one in undo_all(run, "memory")] == ["memory"]
    assert (len(in_force(run, 0)), len(in_force(run, 1))) == (4, 0)
    done = undo_all(run)
    assert [(one.cell, len(one.deltas)) for one in done] == [("writer", 4), ("memory", 0)]
    assert in_force(run, 0) == []


def test_a_delta_is_found_in_the_one_cell_that_has_it(run_of):
    run = run_of(["writer", "batcher"])
    name = ids(run, 1)[2]
    assert undo(run, name).cell == "batcher"
    with pytest.raises(UnknownCellError, match="has 2 cells, name one: writer, batcher"):
        undo(run)


def test_a_delta_that_two_cells_have_needs_the_cell(run_of):
    run = run_of("writer", count=1, schedule=[{"interval": 1}, {"interval": 2}])
    (name,) = ids(run)
    with pytest.raises(UnknownCellError, match="name one: "):
        undo(run, name)
    cell = read_run(run).cells[1].name
    assert undo(run, name, cell=cell).cell == cell


KILLED = """
import os, signal, sys
from kedit_core.journal import Journal
from kedit_core.plugins import Plugins
from kedit_core.run_undo import undo
sys.path.insert(0, {tests!r})
from conftest import _memory
plugins = Plugins()
plugins.register(_memory("memory", removes=False, layer=-1))
write = Journal.write
class Killing:
    def __init__(self, connection): self.connection = connection
    def __getattr__(self, name): return getattr(self.connection, name)
    def __enter__(self): return self.connection.__enter__()
    def __exit__(self, *what): os.kill(os.getpid(), signal.SIGKILL)
def killed(journal, *statements):
    journal._connection = Killing(journal._connection)
    write(journal, *statements)
Journal.write = killed
undo({run!r}, plugins=plugins)
"""


def test_an_undo_that_is_killed_before_its_commit_has_changed_nothing(run_of):
    run = run_of("memory")
    before = edits(run)
    code = KILLED.format(tests=str(Path(__file__).parent), run=str(run))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert edits(run) == before
    with reading(run) as journal:
        assert len(unused_files(journal)) == 1
    assert undo(run).made_again == 2
    with reading(run) as journal:
        assert unused_files(journal) == []
    assert len(in_force(run)) == 3


def test_undo_on_the_command_line(kedit, run_of):
    run = run_of("memory")
    newest = ids(run)[-1]
    code, out, err = kedit("undo", run)
    assert (code, err) == (0, "")
    assert out == f"memory: delta {newest} out of force, 3 left (2 deltas made again for it)\n"
    assert kedit("undo", run, "--all")[:2] == (0, "memory: 3 deltas out of force, 0 left\n")
    assert kedit("undo", run, "--all")[:2] == (0, "memory: nothing was in force, 0 left\n")


def test_undo_prints_one_document_for_programs(kedit, run_of, opened, tmp_path):
    run = run_of()
    made = ids(run)
    done = {"cell": "writer", "deltas": [made[-1]], "left": 3, "made_again": 0}
    assert json.loads(kedit("undo", run, "--json")[1]) == {"undone": [done]}
    edited, out = merged(opened, run, tmp_path / "edited"), tmp_path / "restored"
    code, said, err = kedit("undo", run, "--all", "--model", edited, "--out", out, "--json")
    assert (code, err) == (0, "")
    told = json.loads(said)
    done = {"cell": "writer", "deltas": made[:3], "left": 0, "made_again": 0}
    assert told["undone"] == [done]
    assert told["restored"]["path"] == str(out)
    assert len(told["restored"]["weights"]) == 2
    assert told["restored"]["cast"] == told["restored"]["foreign"] == []


# --- restoring a checkpoint --------------------------------------------------------------------


def merged(opened, run, out, **options):
    editor = opened(**options)
    editor.load(run)
    export_merged(editor, out)
    editor.close()
    return out


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def test_an_export_is_restored_from_the_run_alone(kedit, run_of, opened, model_folder, tmp_path):
    original = state_digest(loaded(model_folder))
    run = run_of()
    edited = merged(opened, run, tmp_path / "edited")
    assert state_digest(loaded(edited)) != original
    shutil.rmtree(model_folder)
    out = tmp_path / "restored"
    code, said, err = kedit("undo", run, "--all", "--model", edited, "--out", out)
    assert (code, err) == (0, "")
    assert "2 weights as the digests of the originals say" in said
    assert state_digest(loaded(out)) == original
    assert in_force(run) == []
    assert (out / "tokenizer.json").exists()


def test_an_export_in_another_dtype_gets_the_originals_cast_and_it_is_said(
    kedit, run_of, opened, model_folder, tmp_path
):
    run = run_of()
    edited = merged(opened, run, tmp_path / "edited", dtype=torch.bfloat16)
    out = tmp_path / "restored"
    code, said, _ = kedit("undo", run, "--all", "--model", edited, "--out", out)
    assert code == 0
    assert "2 weights cast to the checkpoint's dtype" in said
    assert "as the digests of the originals say" not in said
    assert state_digest(loaded(out)) == state_digest(loaded(model_folder).to(torch.bfloat16))


def test_a_checkpoint_that_the_run_did_not_edit_is_told_of(
    kedit, run_of, tiny, tokenizer, tmp_path
):
    run = run_of()
    other = tmp_path / "other"
    tiny(seed=5).save_pretrained(other)
    tokenizer.save_pretrained(other)
    code, _, err = kedit("undo", run, "--all", "--model", other, "--out", tmp_path / "restored")
    assert code == 0
    assert "warning: 2 weights held what no edit of the run left there" in err


def test_a_restoration_that_cannot_be_right_writes_nothing_and_undoes_nothing(
    run_of, kedit, opened, tiny, tokenizer, tmp_path, model_folder
):
    run = run_of()
    other = tmp_path / "other"
    tiny("gpt2").save_pretrained(other)
    tokenizer.save_pretrained(other)
    out = tmp_path / "restored"
    with pytest.raises(ModelError, match="which the run edited: it is another model"):
        restore(run, other, out)
    wide = tmp_path / "wide"
    tiny(intermediate_size=48).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    with pytest.raises(
        ModelError, match=r"has shape \(16, 48\), the one that the run edited \(16, 24\)"
    ):
        restore(run, wide, out)
    with reading(run) as journal:
        rows = journal.rows("SELECT path FROM originals")
    for row in rows:
        with (run / row["path"]).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
    with pytest.raises(JournalError, match="is damaged: its content is not what was stored"):
        restore(run, model_folder, out)
    assert not out.exists()
    assert kedit("undo", run, "--all", "--model", model_folder, "--out", out)[0] == 2
    assert len(in_force(run)) == 4
    with pytest.raises(ExportError, match="not empty"):
        restore(run, model_folder, model_folder)


def test_a_memory_left_no_checkpoint_to_restore(run_of, model_folder, tmp_path):
    run = run_of("memory")
    with pytest.raises(JournalError, match="changed no weights of"):
        restore(run, model_folder, tmp_path / "restored")


# --- verify ------------------------------------------------------------------------------------


def problems(run, **options):
    return [f"{one.what}: {said}" for one in verify(run, **options) for said in one.problems]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("writer", {}),
        ("memory", {}),
        ("batcher", {"schedule": {"batch_size": 2}}),
        ("writer", {"schedule": {"interval": 2, "keep": False}}),
        ("memory", {"schedule": {"interval": 2, "keep": False}}),
        (["writer", "shrinking"], {"seeds": [0, 1]}),
    ],
)
def test_a_run_that_nobody_touched_is_verified(run_of, plugins, method, changes):
    assert problems(run_of(method, **changes)) == []


@pytest.mark.parametrize("method", ["writer", "memory"])
def test_a_run_from_which_edits_were_taken_is_verified(run_of, plugins, method):
    run = run_of(method, count=5)
    undo(run)
    assert problems(run) == []
    if method == "writer":
        undo(run, ids(run)[1])
        checks = {one.what: one for one in verify(run)}
        assert all(one.passed for one in checks.values())
        assert "of which no row tells" in checks["edits"].found
    undo_all(run)
    assert problems(run) == []


def test_verify_prints_a_line_for_each_check(kedit, run_of, model_folder):
    run = run_of()
    code, out, err = kedit("verify", run)
    assert (code, err) == (0, "")
    assert [line.split(":")[0].split() for line in out.splitlines()] == [
        ["ok", "database"],
        ["ok", "deltas", "writer"],
        ["ok", "parents", "writer"],
        ["ok", "judgements", "writer"],
        ["ok", "originals"],
        ["ok", "model", str(model_folder)],
        ["ok", "edits", "writer"],
    ]
    found = json.loads(kedit("verify", run, "--cell", "writer", "--json")[1])
    assert [one["passed"] for one in found] == [True] * 7


def swap_bits(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_delta(run):
    swap_bits(run / edits(run)[1].path)


def lose_delta(run):
    (run / edits(run)[1].path).unlink()


def forge_delta(run):
    """Put another edit of the same shapes in the place of one, checksum and all."""
    first = edits(run)[0]
    change(
        run, "UPDATE edits SET path = ?, checksum = ? WHERE place = 1", first.path, first.checksum
    )


def damage_original(run):
    with reading(run) as journal:
        swap_bits(run / journal.rows("SELECT path FROM originals")[0]["path"])


def forge_original(run):
    """Store a tensor of other values under a checksum of its own."""
    import hashlib

    with reading(run) as journal:
        row = journal.rows("SELECT * FROM originals")[0]
    path = run / row["path"]
    save_file({name: 2 * one for name, one in load_file(path).items()}, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    change(run, "UPDATE originals SET checksum = ? WHERE path = ?", found, row["path"])


FORGED = {
    "a damaged delta": (damage_delta, "deltas: batch 1: .* is damaged"),
    "a lost delta": (lose_delta, "deltas: batch 1: .* is missing"),
    "another delta": (forge_delta, "deltas: batch 1: .* holds delta"),
    "a damaged original": (damage_original, "originals: model.* is damaged"),
    "another original": (
        forge_original,
        "originals: .* is not the original of .*: its digest differs",
    ),
    "a row taken away": (
        "DELETE FROM edits WHERE place = 1",
        "parents: batch 1: its row is missing",
    ),
    "another parent": (
        "UPDATE edits SET parent = 'beef' WHERE place = 2",
        "parents: batch 2: its parent is beef, not [0-9a-f]{16}",
    ),
    "other bits before": (
        "UPDATE edits SET before = replace(before, '\": \"', '\": \"0') WHERE place = 2",
        "parents: batch 2: .* was not as the batch before left it",
    ),
    "other bits after": (
        "UPDATE edits SET after = replace(after, '\": \"', '\": \"0') WHERE place = 3",
        "edits: model.layers.0.mlp.down_proj.weight is not what the edits left in it",
    ),
    "a forgotten original": (
        "DELETE FROM originals WHERE weight LIKE '%layers.1%'",
        "originals: the original of model.layers.1.* is not kept",
    ),
    "a judgement of nothing": (
        "UPDATE judgements SET at = 9 WHERE at = 4",
        "judgements: the judgement after 9 is of requests that were not made",
    ),
    "a judgement that is no JSON": (
        "UPDATE judgements SET report = '{' WHERE at = 4",
        "judgements: the judgement after 4 cannot be read",
    ),
    "other requests": (
        "UPDATE cells SET requests = replace(requests, '[\"', '[\"x')",
        "judgements: the requests of its batches are not those",
    ),
    "a row without a file": (
        "UPDATE edits SET path = '' WHERE place = 1",
        "deltas: batch 1: its row names no file",
    ),
    "a row of no cell": (
        "UPDATE edits SET cell = 'nobody' WHERE place = 3",
        "database: a row of edits names a row of cells that is not there",
    ),
    "a row that is no JSON": (
        "UPDATE edits SET requests = '[' WHERE place = 3",
        "deltas: its rows cannot be read",
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_verify_finds_what_was_forged_or_damaged(run_of, plugins, forged):
    run = run_of()
    how, complaint = FORGED[forged]
    change(run, how) if isinstance(how, str) else how(run)
    found = problems(run)
    assert any(re.match(complaint, one) for one in found), found


def test_verify_exits_with_1_when_a_check_fails(kedit, run_of):
    run = run_of()
    lose_delta(run)
    code, out, err = kedit("verify", run)
    assert (code, err) == (1, "")
    assert re.search(r"^failed deltas writer: batch 1: .* is missing$", out, re.MULTILINE)
    assert "2 of 7 checks failed" in out
    assert kedit("verify", run, "--json")[0] == 1


def test_verify_tells_another_model_from_the_one_that_was_edited(
    kedit, run_of, tiny, tokenizer, model_folder, tmp_path
):
    run = run_of()
    moved = model_folder.rename(tmp_path / "moved")
    code, out, _ = kedit("verify", run)
    assert (code, "there is no such folder" in out) == (1, True)
    assert kedit("verify", run, "--model", moved)[0] == 0
    other = tmp_path / "other"
    tiny(seed=3).save_pretrained(other)
    tokenizer.save_pretrained(other)
    code, out, _ = kedit("verify", run, "--model", other)
    assert code == 1
    assert "down_proj.weight is not what the run began with" in out
    assert "it was computed for another model" in out


# --- what somebody gets wrong ------------------------------------------------------------------


@pytest.mark.parametrize("command", ["log", "undo", "verify", "doctor"])
def test_a_run_that_is_none_is_one_sentence(kedit, tmp_path, command):
    assert kedit(command, tmp_path / "nothing") == (
        2,
        "",
        f"kedit: {tmp_path / 'nothing'}: holds no run: there is no such folder\n",
    )
    assert kedit(command, tmp_path) == (2, "", f"kedit: {tmp_path}: holds no run\n")
    (tmp_path / "journal.sqlite").write_text("")
    assert "holds no run yet" in kedit(command, tmp_path)[2]
    (tmp_path / "journal.sqlite").write_text("no database at all " * 100)
    code, out, err = kedit(command, tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "file is not a database" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("log", "--cell", "writr"),
            r"has no cell 'writr' \(cells: writer\); did you mean 'writer'",
        ),
        (("undo", "--cell", "x"), r"has no cell 'x' \(cells: writer\)"),
        (("verify", "--cell", "x"), r"has no cell 'x' \(cells: writer\)"),
        (("undo", "beef"), r"no delta 'beef' to undo; in force: [0-9a-f]{16}, "),
        (("undo", "beef", "--cell", "writer"), "no delta 'beef' of writer to undo; in force: "),
        (("undo", "beef", "--all"), "--all takes every edit out; leave 'beef' or --all away"),
        (("undo", "--model", "m", "--out", "o"), "takes every edit out: add --all"),
        (("undo", "--all", "--model", "m"), "give both"),
        (("undo", "--all", "--out", "o"), "give both"),
    ],
)
def test_bad_arguments_are_one_sentence_and_change_nothing(kedit, run_of, arguments, complaint):
    run = run_of(count=2)
    command, *more = arguments
    code, out, err = kedit(command, run, *more)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert re.search(complaint, err), err
    assert len(in_force(run)) == 2


def test_an_edit_that_is_out_already_is_told_from_one_that_never_was(run_of):
    run = run_of(count=2)
    name = undo(run).deltas[0]
    with pytest.raises(NotInForceError, match=f"delta '{name}' is out already; in force: "):
        undo(run, name)
    with pytest.raises(NotInForceError, match=f"delta '{name}' of writer is out already"):
        undo(run, name, cell="writer")


@pytest.mark.parametrize("command", [["undo"], ["undo", "--all"], ["verify"]])
def test_a_run_on_which_another_process_works_is_left_alone(kedit, run_of, command):
    run = run_of(count=2)
    with closing(open_journal(run)):
        code, out, err = kedit(command[0], run, *command[1:])
    assert (code, out) == (2, "")
    assert re.search(rf"process {os.getpid()} works on this run since 20\d\d-\d\d-\d\dT", err)
    assert len(in_force(run)) == 2


def test_asking_who_works_on_a_run_keeps_nobody_out(run_of):
    run = run_of(count=1)
    from kedit_core.run_folder import RunFolder

    asked = RunFolder(run)
    assert asked.owner() is None
    with closing(open_journal(run)) as journal:
        assert asked.owner()[0] == os.getpid()
        with pytest.raises(RunBusyError):
            open_journal(run)
        assert journal.rows("SELECT 1 FROM cells")
    assert asked.owner() is None


def test_a_delta_of_the_wrong_name_in_a_run_is_not_forgotten(run_of, opened, tmp_path):
    run = run_of(count=1)
    (delta,) = deltas_of(run)
    saved = run / "mine.delta"
    save_deltas([evolve(delta)], saved)
    assert [one.id for one in opened().load(saved)] == [delta.id]
