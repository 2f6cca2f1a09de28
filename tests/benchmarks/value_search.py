"""What reading prefixes once and running only suffixes gains in the search for values.

``python tests/benchmarks/value_search.py [--edits 20]`` searches the values of the same edits twice
in one process and one thread: the plain way (every step a whole forward of all rows, logits at all
positions), and with ``kedit_locate.values``. It prints seconds an edit, the
ratio, and how far the shifts differ.
"""

import random
from statistics import mean
from time import perf_counter

import torch
import typer
from attrs import frozen
from plain_values import plain_search
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kedit_core import Editor, Plugins
from kedit_core.cli.screen import quiet_transformers
from kedit_core.progress import Progress
from kedit_core.untouched import at_rest
from kedit_locate.config import Context, Search
from kedit_locate.rows import edit_rows
from kedit_locate.templates import context_prefixes
from kedit_locate.values import search_values


@frozen
class Timed:
    """A shift, and the seconds that the search for it took."""

    shift: Tensor
    seconds: float


def run(model: str = "atlas:gpt2", edits: int = 20, seed: int = 0) -> None:
    """Print both times, their ratio and the difference of the shifts."""
    torch.set_num_threads(1)
    plugins = Plugins.installed()
    with quiet_transformers():
        editor = Editor.from_pretrained(model, "rome", plugins=plugins)
    facts = list(plugins.call_all("read_requests", source="atlas:editable"))
    requests = random.Random(seed).sample(facts, edits)
    search, site = Search(), editor.weights.layout.down_of(0).path
    prefixes = context_prefixes(
        editor.model, editor.tokenizer, Context(), 0, editor.weights, editor.cache
    )
    plain: list[Timed] = []
    ours: list[Timed] = []
    with at_rest(editor.model):
        for request in requests:
            rows = edit_rows(editor.tokenizer, request, prefixes)
            started = perf_counter()
            found = plain_search(editor.model, rows, site, search)
            plain.append(Timed(found.shift, perf_counter() - started))
            started = perf_counter()
            values = search_values(editor.model, [rows], site, search, Progress())
            ours.append(Timed(values.shift[0], perf_counter() - started))
    slow, fast = mean(one.seconds for one in plain), mean(one.seconds for one in ours)
    near = min(
        float(torch.cosine_similarity(a.shift, b.shift, dim=0))
        for a, b in zip(plain, ours, strict=True)
    )
    table = Table(
        "MODEL", "WHOLE FORWARDS", "SUFFIXES", "RATIO", "LEAST COSINE OF SHIFTS", box=None
    )
    table.add_row(model, f"{slow:.2f} s", f"{fast:.2f} s", f"{slow / fast:.2f}", f"{near:.6f}")
    Console(highlight=False, emoji=False).print(table)


if __name__ == "__main__":
    typer.run(run)
