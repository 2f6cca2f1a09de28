"""What a stream of edits is worth when all of its updates are made a little shorter.

``python tests/benchmarks/shrunk_stream.py MODEL FILE.delta [--edits 300] [--seed 0] [--order 0]
[--share 0.95]...`` makes the stream that ``locate_on_atlas.py`` makes in that order and saves it, or loads it
where the file is there, and judges it with every update multiplied by each share: what edits reach falls with
the share, what they do to other facts with its square.
"""

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from attrs import evolve
from locate_on_atlas import Bench, held_out, show

from kedit_core import EditRequest
from kedit_core.cli.screen import BarProgress, screen
from kedit_core.deltas import Dense, LowRank

SHARES = (1.0, 0.97, 0.95, 0.9)


def made(bench: Bench, facts: list[EditRequest], path: Path) -> None:
    """Put the stream into the model: from the file, or edit by edit and then into the file."""
    if path.exists():
        bench.editor.load(path)
        return
    for fact in facts:
        bench.editor.edit(fact)
    bench.editor.save(path)


def less(part: LowRank | Dense, share: float) -> LowRank | Dense:
    """Return what takes all but a share of an update out again."""
    if isinstance(part, LowRank):
        return evolve(part, left=(share - 1) * part.left)
    return evolve(part, update=(share - 1) * part.update)


def main(
    model: str,
    path: Path,
    edits: int = 300,
    seed: int = 0,
    order: int = 0,
    share: Annotated[list[float] | None, typer.Option()] = None,
    threads: int = 1,
) -> None:
    """Judge the stream at each share and print the scores."""
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        bench = Bench(model, "memit", {"shrink": 1.0}, held_out(Path(folder)), BarProgress())
        facts = bench.facts(edits, seed)
        facts = facts if order == 0 else random.Random(order).sample(facts, len(facts))
        made(bench, facts, path)
        parts = [part for delta in bench.editor.deltas for part in delta.parts]
        for one in share or SHARES:
            with bench.editor.weights.temporarily([less(part, one) for part in parts]):
                screen().print(f"every update times {one:g}")
                show(model, "stream", [(order, bench.judge(facts, 0.0))])


if __name__ == "__main__":
    typer.run(main)
