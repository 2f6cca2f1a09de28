"""A run that is killed again and again loses nothing: the same weights, the same journal, each edit once."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.killing import PHASES, carried_out, journal_of, weights_of

pytestmark = pytest.mark.timeout(900)  # many processes, each of which loads torch

PLAN = """
model = "atlas:gpt2"
requests = "atlas:editable"
limit = 20
metrics = ["reliability.exact"]

[[method]]
name = "memit"
config = { passes = 1, search = { steps = 2 }, statistics = { per_feature = 1 } }

[schedule]
batch_size = 2
interval = 10
evaluate_on = "all"
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Return a folder with the plan, a filled cache, and the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "plan.toml").write_text(PLAN)
    done = carried_out(folder / "plan.toml", folder / "whole", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


def went_on(shared: Path, folder: Path, *options: str):
    resume = ("--resume",) if (folder / "journal.sqlite").exists() else ()
    return carried_out(shared / "plan.toml", folder, *resume, *options, cache=shared / "cache")


def same_as_whole(shared: Path, folder: Path) -> None:
    assert journal_of(folder) == journal_of(shared / "whole")
    assert weights_of(folder) == weights_of(shared / "whole") != {}


def test_a_run_killed_five_times_ends_as_if_nothing_had_happened(shared, tmp_path):
    moments, folder = random.Random(0), tmp_path / "run"
    for phase in PHASES:
        when = moments.choice(["before", "after"])
        call = str(moments.randint(1, 4))
        done = went_on(shared, folder, "--phase", phase, "--call", call, "--when", when)
        assert done.returncode == -signal.SIGKILL, (phase, call, when, done.stderr)
    done = went_on(shared, folder)
    assert done.returncode == 0, done.stderr
    same_as_whole(shared, folder)


def test_a_run_that_may_write_no_more_says_so_and_goes_on_when_it_may(shared, tmp_path):
    folder = tmp_path / "run"
    done = went_on(shared, folder, "--size", "400000")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be" in done.stderr.strip().splitlines()[-1]
    done = went_on(shared, folder)
    assert done.returncode == 0, done.stderr
    same_as_whole(shared, folder)
    assert not list((folder / "objects").rglob("*.tmp"))


def test_a_plan_that_changed_is_another_run(shared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(shared / "whole", folder)
    changed = tmp_path / "plan.toml"
    changed.write_text(PLAN.replace("limit = 20", "limit = 10"))
    done = carried_out(changed, folder, "--resume", cache=shared / "cache")
    assert done.returncode == 2
    assert "was begun with another plan" in done.stderr
