"""A run in a process of its own that is killed with SIGKILL at a chosen moment.

``python -m tests.killing PLAN FOLDER [--resume] [--phase PHASE --call N --when before|after] [--size BYTES]``
carries a plan out; at the Nth call of a function of the phase the process kills itself, before or after
the function's work. ``--size`` lets no file grow beyond so many bytes, as a full disk would.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

PHASES: Mapping[str, tuple[str, ...]] = {
    "search": ("kedit_locate.lot:searched", "kedit_core.workshop:Workshop.compute"),
    "solve": ("kedit_locate.solver:ridge_update",),
    "write": ("kedit_core.weights:Weights._write",),
    "save": ("kedit_core.run_folder:RunFolder.put", "kedit_core.files:sync"),
    "commit": ("kedit_core.journal:Journal.write",),
}
ROOT = Path(__file__).parent.parent


def carried_out(
    plan: Path, folder: Path, *options: str, cache: Path, threads: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run this module in a new process and return how it ended."""
    return subprocess.run(
        [sys.executable, "-m", "tests.killing", str(plan), str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "KEDIT_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )


def journal_of(folder: Path) -> Any:
    """Return all that the journal of a run says, but for times and peak memory."""
    from kedit_core.journal import reading

    lost = {"made", "seconds", "peak_memory"}
    tables = ("cells", "edits", "judgements", "checks", "originals")
    with reading(folder) as journal:
        return {
            table: [
                {name: _timeless(row[name]) for name in row.keys() if name not in lost}  # noqa: SIM118
                for row in journal.rows(f"SELECT * FROM {table}")
            ]
            for table in tables
        }


def _timeless(value: Any) -> Any:
    """Return a value without the times and peak memory that a report holds."""
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    found = json.loads(value)
    return {name: one for name, one in found.items() if name not in {"seconds", "peak_memory"}}


def weights_of(folder: Path) -> Mapping[str, str]:
    """Return the digests of the weights that the newest edits in force of each cell left."""
    from kedit_core.journal import reading

    with reading(folder) as journal:
        rows = journal.rows("SELECT cell, after FROM edits WHERE in_force ORDER BY id")
        return {row["cell"]: row["after"] for row in rows}


def _die(function: Callable[..., Any], call: int, when: str, calls: list[int]) -> Any:
    @wraps(function)
    def dies(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        last = calls[0] == call
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return dies


def _plant(phase: str, call: int, when: str) -> None:
    """Let the process die at a call of a function of the phase, wherever that was imported to."""
    calls = [0]
    for name in PHASES[phase]:
        module, _, path = name.partition(":")
        holder: Any = import_module(module)
        *parents, last = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        real = getattr(holder, last)
        deadly = _die(real, call, when, calls)
        setattr(holder, last, deadly)
        for other in [] if parents else list(sys.modules.values()):
            if getattr(other, last, None) is real:
                setattr(other, last, deadly)


def main(plan: Path, folder: Path, options: Mapping[str, str], *, resume: bool) -> None:
    """Carry a plan out, and maybe die."""
    import torch

    from kedit_core.cli import main as kedit

    torch.set_num_threads(1)
    if "phase" in options:
        for name in (
            "kedit_core.runs",
            "kedit_memit._memit",
            "kedit_rome._rome",
            "kedit_wise._wise",
        ):
            import_module(name)
        _plant(options["phase"], int(options["call"]), options["when"])
    if "size" in options:
        limit = int(options["size"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    given = ["run", str(plan), "--out", str(folder), "--json"]
    kedit([*given, "--resume"] if resume else given)


if __name__ == "__main__":
    flags = sys.argv[3:]
    chosen = {
        name.removeprefix("--"): value
        for name, value in pairwise(flags)
        if name.startswith("--") and name != "--resume"
    }
    main(Path(sys.argv[1]), Path(sys.argv[2]), chosen, resume="--resume" in flags)
