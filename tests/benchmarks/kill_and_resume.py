"""A run killed with SIGKILL again and again, gone on with each time, against one that nothing stopped.

``python -m tests.benchmarks.kill_and_resume [--edits 200] [--kills 50] [--seed 0]``
kills at random moments of searching, solving, writing weights, saving files and committing rows, before or
after the work of a call, and then lets the run end. The journals must be equal but for times and peak
memory, the final weights bit for bit, every edit there once. Exits 1 where something differs.
"""

import random
import signal
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import typer

from kedit_core.cli.screen import screen
from kedit_core.run_reading import read_run
from tests.killing import PHASES, carried_out, journal_of, weights_of

PLAN = """
model = "atlas:gpt2"
requests = "atlas:editable"
limit = {edits}
metrics = ["reliability.exact", "locality.exact"]

[[method]]
name = "memit"
config = {{ passes = 1, search = {{ steps = 2 }}, statistics = {{ per_feature = 1 }} }}

[schedule]
interval = 20
evaluate_on = "window"
"""


def main(edits: int = 200, kills: int = 50, seed: int = 0) -> None:
    """Kill, resume, compare."""
    moments, died, started = random.Random(seed), Counter[str](), perf_counter()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plan, cache = folder / "plan.toml", folder / "cache"
        plan.write_text(PLAN.format(edits=edits))
        whole = carried_out(plan, folder / "whole", cache=cache)
        assert whole.returncode == 0, whole.stderr
        for number in range(kills):
            phase, when = moments.choice(list(PHASES)), moments.choice(["before", "after"])
            call = moments.randint(1, max(1, 2 * edits // kills))
            resume = ["--resume"] if (folder / "run" / "journal.sqlite").exists() else []
            moment = ("--phase", phase, "--call", str(call), "--when", when)
            done = carried_out(plan, folder / "run", *resume, *moment, cache=cache)
            died[phase] += done.returncode == -signal.SIGKILL
            made = len(read_run(folder / "run").cells[0].edits) if resume else 0
            sys.stderr.write(f"{number + 1}: {phase} {when} call {call}: {made} edits\n")
        last = carried_out(plan, folder / "run", "--resume", cache=cache)
        assert last.returncode == 0, last.stderr
        requests = [
            one.id for edit in read_run(folder / "run").cells[0].edits for one in edit.requests
        ]
        checks = {
            "journals equal but for times and peak memory": journal_of(folder / "run")
            == journal_of(folder / "whole"),
            "final weights equal bit for bit": weights_of(folder / "run")
            == weights_of(folder / "whole"),
            "every edit exactly once": len(requests) == len(set(requests)) == edits,
        }
    console = screen()
    console.print(f"{sum(died.values())} of {kills} kills hit, by phase: {dict(died)}")
    for name, holds in checks.items():
        console.print(f"{name}: {'yes' if holds else 'NO'}")
    console.print(f"{perf_counter() - started:.0f} s")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    typer.run(main)
