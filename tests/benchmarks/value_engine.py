"""What the search for values of many edits gains over the plain way, and what it takes.

``python tests/benchmarks/value_engine.py [--shape atlas:llama]`` searches as MEMIT does: the shift is added to
the output of the third block; the bare prompt and five prefixes of ten tokens; no early stop. The model
is an embedded one with its facts; or, as ``gpt2-small``, a random one of 12 layers, width 768 and 50,257
tokens on random rows with the lengths of CounterFact (four subjects in five begin their prompt, three
tokens or so follow, targets have one or two).

The plain way takes one edit at a time and runs all layers on all tokens of all rows at every step, with
one head, in the same dtype; all run in one process and one thread. Printed are CPU seconds an edit, which
other programs disturb less than those of the clock; how many times more the plain way takes; the greatest
difference of the last losses of the edits that both searched; and the memory that each took beside the model.
"""

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
import typer
from attrs import frozen
from plain_values import plain_search
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from kedit_core import Editor, Plugins
from kedit_core.cli.screen import quiet_transformers
from kedit_core.layout import layout_of
from kedit_core.progress import Progress
from kedit_core.untouched import at_rest
from kedit_locate.config import Context, Search
from kedit_locate.rows import EditRows, Row, edit_rows
from kedit_locate.templates import context_prefixes
from kedit_locate.values import search_values

LAYER = 2
CONTEXT = Context(lengths=(10,), count=5)
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@frozen
class Timed:
    """What one way found and took."""

    nll: tuple[float, ...]
    seconds: float
    megabytes: float


def timed(search: Callable[[], tuple[float, ...]]) -> Timed:
    """Return what a search found, its CPU seconds, and its memory at the most beyond what was held."""
    ctypes.CDLL(None).malloc_trim(0)
    REFERENCES.write_text("5", encoding="ascii")  # begin the greatest size anew
    held, started = memory("VmRSS"), process_time()
    nll = search()
    return Timed(nll, process_time() - started, memory("VmHWM") - held)


def memory(kind: str) -> float:
    """Return a size of this process in megabytes, as Linux counts it."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(kind))


def opened(shape: str, count: int) -> tuple[nn.Module, list[EditRows]]:
    """Return a model and the rows of as many edits."""
    if shape == "gpt2-small":
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config()), [random_rows(random.Random(n)) for n in range(count)]
    plugins = Plugins.installed()
    with quiet_transformers():
        editor = Editor.from_pretrained(shape, "rome", plugins=plugins)
    prefixes = context_prefixes(
        editor.model, editor.tokenizer, CONTEXT, 0, editor.weights, editor.cache
    )
    found = list(plugins.call_all("read_requests", source="atlas:editable"))
    requests = random.Random(0).sample(found, count)
    return editor.model, [edit_rows(editor.tokenizer, one, prefixes) for one in requests]


def random_rows(source: random.Random) -> EditRows:
    """Return rows of random tokens that are as long as those of CounterFact."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(source.randrange(50257) for _ in range(count))

    before = tokens(source.choice((0, 0, 0, 0, 3)))
    subject, after = tokens(source.choice((3, 4))), tokens(source.choice((2, 3, 4)))
    target = tokens(source.choice((1, 2)))
    prompt = (*before, *subject, *after, *target[:-1])
    contexts = random.Random(0)  # the same in every edit
    prefixes = [tuple(contexts.randrange(50257) for _ in range(10)) for _ in range(5)]
    rows = tuple(
        Row(
            ids=(*prefix, *prompt),
            lookup=len(prefix) + len(before) + len(subject) - 1,
            target=target,
        )
        for prefix in ((), *prefixes)
    )
    return EditRows(rewrites=rows, anchor=Row(ids=subject, lookup=len(subject) - 1))


def run(
    shape: str = "atlas:llama", edits: int = 100, plain: int = 10, steps: int = 25, lr: float = 0.5
) -> None:
    """Print what both ways take, for one edit at a time and for all edits together."""
    torch.set_num_threads(1)
    model, rows = opened(shape, edits)
    site = layout_of(model).layer(LAYER).path
    search = Search(steps=steps, lr=lr, clamp=0.75, decay=0.5, stop=0.0)

    def engine(some: list[EditRows]) -> tuple[float, ...]:
        return search_values(model, some, site, search, Progress()).nll

    with at_rest(model):
        engine(rows[:1])  # what happens once in a process happens here
        plainly = timed(
            lambda: tuple(plain_search(model, one, site, search).nll for one in rows[:plain])
        )
        alone = timed(lambda: tuple(nll for one in rows[:plain] for nll in engine([one])))
        together = timed(lambda: engine(rows))
    table = Table("WAY", "EDITS", "S AN EDIT", "RATIO", "LOSSES DIFFER BY", "MEMORY", box=None)
    ways = (("plain", plain, plainly), ("alone", plain, alone), ("together", edits, together))
    slow = plainly.seconds / plain
    for name, count, way in ways:
        each = way.seconds / count
        apart = max(abs(a - b) for a, b in zip(plainly.nll, way.nll, strict=False))
        cells = (f"{each:.4f}", f"{slow / each:.1f}", f"{apart:.1e}", f"{way.megabytes:,.0f} MB")
        table.add_row(f"{shape} {name}", str(count), *cells)
    Console(highlight=False, emoji=False).print(table)


if __name__ == "__main__":
    typer.run(run)
