"""What kedit says to each bad input: ``python tests/benchmarks/bad_inputs.py`` prints the whole list.

The cases are those of ``tests/core/bad_inputs.py``, which the tests run too. Exits 1 when one of them says
something else than it must.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))

from bad_inputs import CASES, Answer, BadInput, Scene, answer, build, install


def run() -> int:
    """Print a Markdown table per group and return the exit code."""
    torch.set_num_threads(1)
    wrong, group = 0, ""
    with TemporaryDirectory() as name:
        folder = Path(name)
        install(folder / "site")
        build(folder / "built")
        sys.path.insert(0, str(folder / "site"))
        os.environ["KEDIT_CACHE"] = str(folder / "cache")
        for number, case in enumerate(CASES):
            here = folder / str(number)
            shutil.copytree(folder / "built", here)
            found = answer(case, Scene(here))
            right = _is_right(case, found)
            wrong += not right
            if case.group != group:
                group = case.group
                sys.stdout.write(f"\n## {group}\n\n| | exit | says |\n| --- | --- | --- |\n")
            said = " ⏎ ".join(found.err.strip().splitlines()).replace(f"{here}/", "")
            note = "" if right else " **wrong**"
            sys.stdout.write(f"| {case.name} | {found.code}{note} | {_cell(said)} |\n")
    sys.stdout.write(f"\n{len(CASES)} bad inputs, {wrong} of them answered wrongly\n")
    return 1 if wrong else 0


def _is_right(case: BadInput, found: Answer) -> bool:
    kept = found.changed == tuple(sorted(case.writes)) and not found.edited
    return found.code == case.code and bool(re.match(case.says, found.err)) and kept


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or "(nothing: it works)"


if __name__ == "__main__":
    sys.exit(run())
