"""``kedit lab report``, run as ``kedit`` runs it; the journal is played."""

import json

import pytest

from kedit_core.cli import main
from kedit_core.errors import KeditError


@pytest.fixture
def kedit(capsys, monkeypatch, made):
    """Return a function that runs the command on a run that was never made."""

    def read_run(folder):
        if str(folder) == "nowhere":
            raise KeditError(f"{folder} is no run")
        return made.two_methods(20)

    monkeypatch.setattr("kedit_core.run_reading.read_run", read_run)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["lab", "report", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_the_file_is_written_and_the_verdict_said(kedit, tmp_path):
    out = tmp_path / "new" / "report.html"
    code, said, err = kedit("runs/one", "--out", out)
    assert code == 0, err
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "memit keeps most" in said
    assert str(out) in said.replace("\n", "")
    assert not err


def test_one_json_document_says_where_it_is(kedit, tmp_path):
    out = tmp_path / "report.html"
    code, said, _ = kedit("runs/one", "--out", out, "--json")
    assert code == 0
    document = json.loads(said)
    assert document["bytes"] == out.stat().st_size
    assert document["run"] == "runs/one"
    assert document["verdict"].startswith("memit keeps most")


def test_a_file_that_cannot_be_written_is_one_sentence_before_any_work(kedit, tmp_path):
    code, said, err = kedit("nowhere", "--out", tmp_path)
    assert (code, said) == (2, "")
    assert "cannot be written" in err
    assert "Traceback" not in err


def test_what_is_no_run_is_said_and_leaves_no_file(kedit, tmp_path):
    out = tmp_path / "report.html"
    code, _, err = kedit("nowhere", "--out", out)
    assert code == 2
    assert "nowhere is no run" in err
    assert not out.exists()
