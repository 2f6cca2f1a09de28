"""How fast side memories are, for the shapes of real models with random weights.

    python tests/benchmarks/gpu_memory.py [--shape llama-3-8b] [--part decoding] [--device cuda] [--full]

``edits`` times edits of WISE, trained as the original's and of SERAC, which is one short forward. ``decoding``
counts tokens a second of the model alone, with WISE beside it (one shard and eight) and with SERAC (1,000
stored edits, 100,000 with ``--full``), for prompts that stay outside and for such that are answered by the
memory. Thresholds are set so that all prompts go one way: what is measured is what each way costs.

Nothing is downloaded. Tables are Markdown, and every row is written as soon as it is known; with ``--out`` also
to the end of a file. Without a GPU the shape ``tiny`` shows that all of it runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import date
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from attrs import evolve, frozen
from random_models import (
    SHAPES,
    Machine,
    Shape,
    markdown,
    random_model,
    their_tokenizer,
    written_edits,
)
from rich.console import Console

from kedit_core import Delta, Editor, TensorCache, Weights, encode
from kedit_memory.decoders import shape_for
from kedit_memory.lexicons import lexicon_of
from kedit_memory.members import Members, memory_of, shared_of
from kedit_memory.pooling import sites_of
from kedit_memory.scope_files import BEST, made_for
from kedit_memory.scope_training import untrained
from kedit_serac._serac import Answering
from kedit_serac.checkpoints import Checkpoint, write
from kedit_serac.config import SeracConfig
from kedit_serac.counterfactual import new_counterfactual

STEPS = 70  # of WISE's training, as the original's
ROWS, TOKENS = 8, 64
STORED, MANY = 1_000, 100_000
WIDTH, WORDS = 256, 1024  # of the scope classifier
INSIDE, OUTSIDE = -9.0, 9.0  # thresholds that every score, or none, reaches

Rows = Iterator[Sequence[object]]


class Part(StrEnum):
    """What is measured."""

    EDITS = "edits"
    DECODING = "decoding"


@frozen(slots=False)
class Bench:
    """One shape on one machine."""

    shape: Shape
    machine: Machine
    folder: Path
    full: bool

    @cached_property
    def model(self) -> Any:
        """Return the model, in bfloat16."""
        return random_model(self.shape, torch.bfloat16, self.machine.device)

    @cached_property
    def tokenizer(self) -> Any:
        """Return a tokenizer for the requests."""
        return their_tokenizer(self.shape.config.vocab_size)

    def editor(self, method: str, config: Any) -> Editor:
        """Return an editor that keeps what it makes once in the bench's folder."""
        cache = TensorCache(self.folder / "cache")
        return Editor(self.model, self.tokenizer, method, config, cache=cache)

    def wise(self, *, inside: bool, steps: int = STEPS) -> Editor:
        """Return an editor with WISE as the original trains it, one edit a shard.

        Args:
            inside: whether all prompts go to a shard, or none.
            steps: of an edit's training.
        """
        texts = self.folder / "irrelevant.txt"
        texts.write_text("The harvest was late that year, and nobody knew why.\n", encoding="utf-8")
        routes = {
            "measure": "mean",
            "threshold": "activation",
            "ratio": 1e-9 if inside else 1e9,
            "texts": str(texts),
        }
        descent = {"steps": steps, "stop": 0.0}
        shards = {"size": 1}
        config = {"writer": "descent", "descent": descent, "routes": routes, "shards": shards}
        return self.editor("wise", config)

    def serac(self, threshold: float) -> Editor:
        """Return an editor with SERAC of random weights."""
        folder = self.folder / "serac"
        if not folder.exists():
            chance = torch.Generator().manual_seed(0)
            weights = Weights(self.model)
            sites = sites_of(weights.layout)
            features = (len(sites.means) + len(sites.lasts)) * self.model.config.hidden_size
            lexicon = lexicon_of([one.prompt for one in written_edits(STORED)], WORDS)
            classifier = evolve(
                untrained(sites, lexicon),
                projection=torch.randn(WIDTH, features, generator=chance) / features**0.5,
                offset=torch.zeros(WIDTH),
                leaning=torch.zeros(features + 1),
                words=1.0,
            )
            shape = shape_for(self.model, 2, None)
            made = Checkpoint(
                classifier=classifier,
                shape=shape,
                weights=new_counterfactual(shape, 0).state_dict(),
                made_for=made_for(weights, self.tokenizer),
                chat=False,
            )
            folder.mkdir()
            write(made, folder / BEST)
        return self.editor("serac", {"checkpoint": str(folder), "threshold": threshold})

    def speed(self) -> str:
        """Return tokens a second that the model decodes, as it is now."""
        read = encode(self.tokenizer, [one.prompt for one in written_edits(ROWS)])
        width = max(len(one.ids) for one in read)
        ids, mask = torch.zeros(2, ROWS, width, dtype=torch.long, device=self.machine.device)
        for row, one in enumerate(read):
            ids[row, width - len(one.ids) :] = torch.tensor(one.ids)
            mask[row, width - len(one.ids) :] = 1
        fixed = {"max_new_tokens": TOKENS, "eos_token_id": None, "pad_token_id": 0}
        seconds = self.machine.seconds(
            lambda: self.model.generate(ids, attention_mask=mask, do_sample=False, **fixed),
            repeat=3,
        )
        return f"{ROWS * TOKENS / seconds:,.0f}"


def edits(bench: Bench) -> Rows:
    """Yield seconds of edits."""
    yield "edit", "steps", "seconds an edit", "peak memory"
    machine = bench.machine
    steps = STEPS if machine.gpu else bench.shape.steps
    requests = written_edits(4)
    with closing(bench.wise(inside=False, steps=steps)) as editor:
        editor.edit(requests[-1])  # what is made once for a model
        editor.undo()
        started = machine.begin()
        for one in requests[:3]:
            editor.edit(one)
        each = (machine.wait() - started) / 3
        _empty(editor)
    yield "WISE, trained", steps, f"{each:.3f}", machine.peak()
    count = STORED if machine.gpu else 20
    with closing(bench.serac(OUTSIDE)) as editor:
        started = machine.begin()
        editor.edit(written_edits(count))
        each = (machine.wait() - started) / count
        _empty(editor)
    yield f"SERAC, {count:,} at once", "–", f"{each:.4f}", machine.peak()


def decoding(bench: Bench) -> Rows:
    """Yield tokens a second."""
    yield "beside the model", "out of scope", "in scope"
    alone = bench.speed()
    yield "nothing", alone, alone
    for shards in (1, 8):
        found = []
        for inside in (False, True):
            with closing(bench.wise(inside=inside, steps=2)) as editor:
                for one in written_edits(shards):
                    editor.edit(one)
                found.append(bench.speed())
                _empty(editor)
        yield f"WISE, shards: {shards}", *found
    sizes = (STORED, MANY) if bench.full else (STORED,)
    for size in sizes:
        found = []
        for threshold in (OUTSIDE, INSIDE):
            with closing(bench.serac(threshold)) as editor:
                delta = _grown(editor.edit(written_edits(4)), size)
                _empty(editor)
            applied = Answering(bench.model, bench.tokenizer, delta, SeracConfig()).attach()
            found.append(bench.speed())
            applied.undo()
        yield f"SERAC, edits: {size:,}", *found


def _empty(editor: Editor) -> None:
    while editor.deltas:
        editor.undo()


def _grown(delta: Delta, size: int) -> Delta:
    """Return a memory of as many edits, at random places of the directions."""
    part = memory_of(delta)
    chance = torch.Generator().manual_seed(0)
    width = next(one.shape[1] for name, one in part.tensors.items() if name.endswith("embedding"))
    rows = torch.randn(size, width, generator=chance) / width**0.5
    members = Members(requests=written_edits(size), rows={"embedding": rows})
    grown = evolve(part, tensors={**shared_of(delta), **members.tensors()})
    return evolve(delta, requests=members.requests, parts=[grown])


PARTS: dict[Part, Callable[[Bench], Rows]] = {Part.EDITS: edits, Part.DECODING: decoding}


def main(
    shape: Annotated[list[str] | None, typer.Option(help=", ".join(SHAPES))] = None,
    part: Annotated[list[Part] | None, typer.Option(help="All when none is named.")] = None,
    device: Annotated[str, typer.Option(help="By default a GPU where there is one.")] = "",
    full: Annotated[bool, typer.Option(help="100,000 stored edits too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to the end of this file too.")] = None,
) -> None:
    """Measure and print."""
    machine = Machine(device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not machine.gpu:
        torch.set_num_threads(1)
    console = Console(highlight=False, emoji=False, soft_wrap=True, markup=False)

    def say(line: str) -> None:
        console.print(line)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    say(f"{machine.name}, torch {torch.__version__}, {date.today().isoformat()}")
    for name in shape or (["llama-3-8b"] if machine.gpu else ["tiny"]):
        with TemporaryDirectory() as folder:
            bench = Bench(SHAPES[name], machine, Path(folder), full)
            for one in part or list(Part):
                say(f"\n### {name}: {one.value}\n")
                for number, cells in enumerate(PARTS[one](bench)):
                    say(markdown(cells))
                    if number == 0:
                        say(markdown(["---"] * len(cells)))


if __name__ == "__main__":
    typer.run(main)
