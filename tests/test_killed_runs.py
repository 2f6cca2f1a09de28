"""A run that is killed again and again loses nothing: the same weights, the same journal, each edit once."""

import json
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

MEMORY = """
model = "atlas:gpt2"
requests = "atlas:editable"
limit = 6
metrics = ["reliability.exact"]

[[method]]
name = "wise"

[method.config]
closed_form = { passes = 1, search = { steps = 2 }, statistics = { per_feature = 1 } }
context = { count = 1 }
routes = { count = 32 }
shards = { size = 4 }

[schedule]
batch_size = 2
interval = 2
evaluate_on = "all"
"""


def prepared(folder: Path, plan: str) -> Path:
    """Return a folder with a plan, a filled cache, and the run that nothing stopped."""
    (folder / "plan.toml").write_text(plan)
    done = carried_out(folder / "plan.toml", folder / "whole", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Return the run of a stream that writes weights."""
    return prepared(tmp_path_factory.mktemp("runs"), PLAN)


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


def test_a_memory_that_grows_is_the_same_after_three_kills(tmp_path):
    shared, folder = prepared(tmp_path, MEMORY), tmp_path / "run"
    for moment in (
        ("--phase", "commit", "--call", "1", "--when", "after"),
        ("--phase", "search", "--call", "2", "--when", "after"),
        ("--phase", "save", "--call", "1", "--when", "before"),
    ):
        done = went_on(shared, folder, *moment)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
    done = went_on(shared, folder)
    assert done.returncode == 0, done.stderr
    assert journal_of(folder) == journal_of(shared / "whole")
    edits = journal_of(folder)["edits"]
    assert [len(json.loads(one["requests"])) for one in edits] == [2, 2, 2]


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
