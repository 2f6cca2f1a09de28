"""kedit doctor: what is wrong here, and what of it can be deleted."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import torch

from kedit_core import Plugins, TensorCache, read_run
from kedit_core.cli import main
from kedit_core.doctor import examine
from kedit_core.errors import BrokenPluginError
from kedit_core.journal import open_journal
from kedit_core.leftovers import Leftover
from kedit_core.plugins import PluginRow
from kedit_core.verifying import verify

OLD = 2 * 3600


@pytest.fixture(autouse=True)
def installed(plugins, monkeypatch, tmp_path):
    monkeypatch.setattr(Plugins, "installed", classmethod(lambda cls: plugins))
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def kedit(capsys, monkeypatch):
    """Return what runs the command line and gives its code and its two streams."""

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


DIE = """
import os, signal, sys
from pathlib import Path
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(code, *arguments):
    """Run a program that kills itself in the middle, as a machine does that loses its power."""
    given = [str(argument) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", DIE + code, *given], check=False)
    assert done.returncode == -signal.SIGKILL


def aged(path, seconds=OLD):
    for one in [*path.rglob("*"), path] if path.is_dir() else [path]:
        then = one.stat().st_mtime - seconds
        os.utime(one, (then, then))
    return path


def files(folder):
    """Return the files of a folder, but for those that come and go with whoever looks at a run."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {"owner.json", "journal.sqlite-wal", "journal.sqlite-shm"}


def found(*runs, **options):
    return [(one.what, one.about, one.problem) for one in examine(runs, **options).findings]


# --- what is there -----------------------------------------------------------------------------


def test_doctor_shows_what_kedit_works_with(kedit, run_of, tmp_path):
    TensorCache().put("moments", {"of": "x"}, {"a": torch.ones(300)})
    code, out, err = kedit("doctor", run_of(count=1))
    assert (code, err) == (0, "")
    assert re.search(rf"^versions .*kedit-core .*torch {re.escape(torch.__version__)}", out)
    assert re.search(r"^device    cpu: .+, cores \d+, threads 1$", out, re.MULTILINE)
    assert "plugins   batcher, memory, shrinking, writer\n" in out
    assert re.search(rf"cache     {tmp_path}/cache: 1 file, 1\.\d KiB\n", out)
    assert out.endswith("\nall is well\n")


def test_doctor_in_json_says_the_same(kedit, run_of):
    code, out, _ = kedit("doctor", run_of(count=1), "--json")
    health = json.loads(out)
    assert (code, health["healthy"], health["findings"], health["notes"]) == (0, True, [], [])
    assert health["plugins"] == ["batcher", "memory", "shrinking", "writer"]


def test_a_plugin_that_is_broken_is_a_problem_that_stays(kedit, plugins):
    error = BrokenPluginError("shattered", "import fails: ImportError: no [/glue]")
    row = PluginRow(name="shattered", package="bits 1.0", problem=error.problem, error=error)
    plugins._rows["shattered"] = row
    for options in ([], ["--fix"]):
        code, out, _ = kedit("doctor", *options)
        assert code == 1
        assert (
            "problem   plugin shattered (bits 1.0): import fails: ImportError: no [/glue]\n" in out
        )
        assert out.endswith("\n1 problem\n")


# --- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def cache():
    cache = TensorCache()
    for number in range(3):
        cache.put("moments", {"of": number}, {"a": torch.full((8,), float(number))})
    return cache


def path_of(cache, number):
    return cache.path("moments", {"of": number})


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_files_of_the_cache_are_found_and_deleted(kedit, cache):
    damage(path_of(cache, 0))
    path_of(cache, 1).write_bytes(path_of(cache, 2).read_bytes())
    code, out, _ = kedit("doctor")
    assert code == 1
    assert "its checksum does not match" in out
    assert "it belongs to another key" in out
    assert "2 problems, 2 of which kedit doctor --fix deletes" in out
    assert kedit("doctor", "--fix")[0] == 0
    assert [file.path for file in cache.files()] == [path_of(cache, 2)]
    assert kedit("doctor")[0] == 0


def test_a_file_of_the_cache_that_was_cut_off_is_damaged(cache):
    path = path_of(cache, 1)
    path.write_bytes(path.read_bytes()[:-9])
    ((what, about, problem),) = found()
    assert (what, about) == ("cache", str(path))
    assert problem.startswith("is damaged (")


def test_what_others_keep_in_the_folder_of_the_cache_is_left_alone(cache):
    theirs = cache.folder / "moments" / "model.safetensors"
    theirs.write_text("no safetensors")
    (cache.folder / "moments" / "notes.tmp").write_text("mine")
    assert found(fix=True) == []
    assert theirs.exists()


def test_a_cache_that_cannot_be_written_is_a_problem(kedit, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "file" / "cache"))
    code, out, _ = kedit("doctor")
    assert code == 1
    assert "cannot be written (a file stands where its folder would be)" in out


def test_a_half_written_file_of_the_cache_is_deleted_once_it_is_old(cache):
    killed(
        "from kedit_core.files import write_atomically\nwrite_atomically(Path(sys.argv[1]), die)",
        path_of(cache, 7),
    )
    (left,) = path_of(cache, 7).parent.glob(".*.tmp")
    health = examine(fix=True)
    assert health.findings == ()
    assert re.match(
        rf"{re.escape(str(left))}: may be in use, written to \d minutes ago", health.notes[0]
    )
    assert left.exists()
    aged(left)
    assert found() == [("leftover", str(left), "left over from a process that was killed")]
    examine(fix=True)
    assert not left.exists()
    assert len(list(cache.files())) == 3


# --- runs --------------------------------------------------------------------------------------


def test_what_a_crash_left_in_a_run_is_found_and_deleted(run_of, kedit, plugins):
    run = run_of()
    before = files(run)
    killed(
        "from kedit_core.run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "folder.put(lambda path: path.write_text('whole') and None)\n"
        "folder.put(die)",
        run,
    )
    orphans = files(run) - before
    assert len(orphans) == 2
    code, out, _ = kedit("doctor", run)
    assert code == 1
    assert "no row of the journal names it" in out
    assert "half written" in out
    assert files(run) == before | orphans
    code, out, _ = kedit("doctor", run, "--fix")
    assert code == 0
    assert out.count("deleted   run ") == 2
    assert files(run) == before
    assert all(check.passed for check in verify(run, plugins=plugins))


def test_a_delta_that_was_being_written_is_half_written(run_of):
    run = run_of()
    killed(
        "from kedit_core.files import write_atomically\n"
        "from kedit_core.run_folder import RunFolder\n"
        "RunFolder(sys.argv[1]).put(lambda path: write_atomically(path, die))",
        run,
    )
    assert [problem for _, _, problem in found(run)] == ["half written", "half written"]
    assert found(run, fix=True) != []
    assert found(run) == []


def test_an_edit_whose_row_was_never_committed_leaves_an_orphan(run_of):
    run = run_of()
    newest = read_run(run).cells[0].edits[-1]
    with closing(sqlite3.connect(run / "journal.sqlite")) as connection, connection:
        connection.execute("DELETE FROM edits WHERE place = 3")
    assert [about for _, about, _ in found(run, fix=True)] == [str(run / newest.path)]
    assert not (run / newest.path).exists()


def test_files_that_kedit_did_not_write_are_left_in_a_run(run_of):
    run = run_of()
    theirs = [run / "objects" / "notes.txt", run / "report.html", run / "objects" / "x.tmp"]
    for path in theirs:
        path.write_text("mine")
    assert found(run, fix=True) == []
    assert all(path.exists() for path in theirs)


def test_a_file_that_a_row_names_is_never_deleted_whatever_became_of_it(run_of):
    run = run_of()
    named = read_run(run).cells[0].edits[1].path
    damage(run / named)
    assert found(run, fix=True) == []
    (run / named).unlink()
    assert found(run, fix=True) == [("run", str(run / named), "is missing; a row names it")]


def test_an_edit_that_is_out_of_force_keeps_its_file(run_of):
    run = run_of(schedule={"keep": False})
    assert found(run, fix=True) == []
    assert all((run / edit.path).exists() for edit in read_run(run).cells[0].edits)


def test_a_run_on_which_another_process_works_is_left_alone(run_of, kedit):
    run = run_of()
    orphan = run / "objects" / "ab" / f"{'ab' * 32}.safetensors"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_text("being written")
    with closing(open_journal(run)):
        code, out, _ = kedit("doctor", run, "--fix")
    assert code == 0
    assert f"note      {run}: process {os.getpid()} works on it; its files are left alone\n" in out
    assert orphan.exists()
    assert kedit("doctor", run)[0] == 1
    assert kedit("doctor", run, "--fix")[0] == 0
    assert not orphan.exists()


def test_an_export_that_was_killed_beside_a_run_is_deleted_once_it_is_old(run_of, kedit, tmp_path):
    run = run_of(count=1)
    killed(
        "from kedit_core.folders import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'config.json').write_text('{}')\n"
        "    die()",
        tmp_path / "export",
    )
    (left,) = tmp_path.glob(".export.*.tmp")
    assert kedit("doctor", run, "--fix")[0] == 0
    assert left.exists()
    aged(left)
    code, out, _ = kedit("doctor", run)
    assert (code, f"problem   leftover {left} (" in out) == (1, True)
    assert kedit("doctor", run, "--fix")[0] == 0
    assert not left.exists()
    assert run.exists()


def test_what_cannot_be_deleted_is_still_a_problem(run_of, kedit, monkeypatch):
    run = run_of(count=1)
    (run / "objects" / "tmp0123abcd.tmp").write_text("")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Leftover, "delete", refuse)
    (finding,) = examine([run], fix=True).left
    assert finding.problem == "half written; cannot be deleted (Permission denied)"


def test_looking_at_a_run_changes_nothing_in_it(run_of):
    run = run_of()
    before = {name: (run / name).read_bytes() for name in files(run)}
    examine([run], fix=True)
    assert {
        name: (run / name).read_bytes() for name in files(run) if name != "owner.json"
    } == before


def test_examining_needs_no_plugin_at_all(run_of):
    assert examine([run_of()], plugins=Plugins()).plugins == ()
