"""How long ``kedit list-methods`` takes, against the bare imports that it cannot do without.

``python tests/benchmarks/list_methods.py`` runs both in fresh processes, alternating, prints the medians
and their ratio, and exits 1 when the ratio is above 2 or torch was imported.
"""

import statistics
import subprocess
import sys
from time import perf_counter

from rich.console import Console

RUNS = 5
BARE = "import typer, rich, pluggy, attrs, cattrs"
LIST = "from kedit_core.cli import main; main(['list-methods'])"
LOADED = (
    "import sys\n"
    "from kedit_core.cli import main\n"
    "try: main(['list-methods'])\n"
    "except SystemExit: pass\n"
    "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
)


def seconds(code: str) -> float:
    """Return how long a fresh Python takes for ``code``."""
    started = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - started


def run() -> int:
    """Print the medians and return the exit code."""
    seconds(BARE), seconds(LIST)  # fills the disk cache
    pairs = [(seconds(BARE), seconds(LIST)) for _ in range(RUNS)]
    bare, listed = (statistics.median(times) for times in zip(*pairs, strict=True))
    loaded = subprocess.run([sys.executable, "-c", LOADED], check=False, stdout=subprocess.DEVNULL)
    clean = loaded.returncode == 0
    console = Console(highlight=False, emoji=False)
    console.print(f"bare imports        {bare:.3f} s\nkedit list-methods  {listed:.3f} s")
    console.print(f"ratio               {listed / bare:.2f} (bar: 2), torch imported: {not clean}")
    return 0 if listed <= 2 * bare and clean else 1


if __name__ == "__main__":
    sys.exit(run())
