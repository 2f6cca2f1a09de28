"""How fast the engine of locate-then-edit is, for the shapes of real models with random weights.

    python tests/benchmarks/gpu_locate.py [--shape gpt-j-6b] [--part kernels] [--device cuda] [--full]

``kernels`` times each operator against its torch body and against what this machine can do at all: how
fast it copies and multiplies is measured first. ``engine`` searches values many at a time in bfloat16,
and one at a time in float32 with whole forwards as the authors' code does, from the same weights.
``moments`` collects second moments. ``end-to-end`` edits through an installed method.

Nothing is downloaded. Tables are Markdown, and every row is written as soon as it is known; with
``--out`` also to the end of a file. Without a GPU the operators are their torch bodies, and the shape
``tiny`` shows that all of it runs.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import attrs
import torch
import typer
from attrs import frozen
from operator_work import name_of, works_of
from plain_values import plain_search
from random_models import (
    SHAPES,
    Machine,
    Shape,
    cast,
    markdown,
    random_corpus,
    random_edits,
    random_model,
    their_tokenizer,
    written_edits,
)
from rich.console import Console
from torch import Tensor

from kedit_core import Editor, Plugins, TensorCache, layout_of
from kedit_core.errors import UnknownMethodError
from kedit_core.progress import Progress
from kedit_locate.config import Search
from kedit_locate.moments import collect
from kedit_locate.values import search_values

NAIVE = 4  # edits searched one at a time

Rows = Iterator[Sequence[object]]


class Part(StrEnum):
    """What is measured."""

    KERNELS = "kernels"
    ENGINE = "engine"
    MOMENTS = "moments"
    END_TO_END = "end-to-end"


@frozen(kw_only=True)
class Bench:
    """One shape on one machine.

    Attributes:
        shape: of the model.
        machine: where it runs.
        method: of the edits end to end.
        full: whether as many edits as there are sizes for.
    """

    shape: Shape
    machine: Machine
    method: str
    full: bool


def kernels(bench: Bench) -> Rows:
    """Yield each operator beside its torch body and the limit of the machine."""
    yield "operator", "torch body", "Triton", "gain", "limit", "reached"
    machine = bench.machine
    copied = _copied(machine)
    multiplied = {dtype: _multiplied(machine, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rates = ", ".join(f"{name_of(one)} {rate / 1e12:.3g}" for one, rate in multiplied.items())
    yield f"this machine: {copied / 1e9:.0f} GB/s copied, {rates} TFLOP/s", *("",) * 5
    for work in works_of(bench.shape, machine.device):
        body = machine.seconds(lambda work=work: work.operator._init_fn(*work.given))
        limit = max(work.bytes / copied, work.flops / multiplied[work.dtype])
        own, triton = body, ("–", "–")
        if machine.gpu:
            own = machine.seconds(lambda work=work: work.operator(*work.given))
            triton = _time(own), f"{body / own:.2f}"
        yield work.name, _time(body), *triton, _time(limit), f"{limit / own:.0%}"


def engine(bench: Bench) -> Rows:
    """Yield searches for values, many at a time, beside the plain search of the first few edits."""
    yield "edits", "an edit", "gain", "least cos(z)", "least cos(δ)", "NLL off by", "peak memory"
    machine, shape = bench.machine, bench.shape
    model = random_model(shape, torch.bfloat16, machine.device)
    edits = random_edits(max(shape.together), shape.config.vocab_size)
    # No early stop: both paths make all steps.
    search = Search(steps=shape.steps, lr=0.5, clamp=0.75, stop=0.0)
    warm = attrs.evolve(search, steps=2)
    site = layout_of(model).layers[shape.layers[-1]].path
    cast(model, torch.float32)
    plain_search(model, edits[-1], site, warm)
    started = machine.begin()
    plain = [plain_search(model, edit, site, search) for edit in edits[:NAIVE]]
    naive = (machine.wait() - started) / NAIVE
    yield f"{NAIVE}, one at a time, float32", _time(naive), "1", *("–",) * 3, machine.peak()
    cast(model, torch.bfloat16)
    search_values(model, edits[:1], site, warm, Progress())
    for count in shape.together:
        started = machine.begin()
        found = search_values(model, edits[:count], site, search, Progress())
        each = (machine.wait() - started) / count
        pairs = list(zip(plain, found.base, found.shift, found.nll, strict=False))
        value = min(_cosine(a.base + a.shift, base + shift) for a, base, shift, _ in pairs)
        angle = min(_cosine(a.shift, shift) for a, _, shift, _ in pairs)
        off = max(abs(nll - a.nll) / a.nll for a, _, _, nll in pairs)
        near = f"{value:.4f}", f"{angle:.4f}", f"{off:.2%}"
        yield f"{count}, bfloat16", _time(each), f"{naive / each:.1f}", *near, machine.peak()


def moments(bench: Bench) -> Rows:
    """Yield how many tokens a second the second moments of all edited layers are collected from."""
    yield "layers", "tokens", "seconds", "tokens/s", "peak memory"
    machine, shape = bench.machine, bench.shape
    model = random_model(shape, torch.bfloat16, machine.device)
    downs = [layout_of(model).down_of(layer) for layer in shape.layers]
    corpus = random_corpus(shape.tokens, shape.config.vocab_size)
    warm = random_corpus(shape.tokens // 16, shape.config.vocab_size)
    collect(model, downs, warm, Progress())
    for some in (downs[-1:], downs):
        started = machine.begin()
        collect(model, some, corpus, Progress())
        seconds = machine.wait() - started
        rate = f"{corpus.tokens / seconds:,.0f}"
        yield len(some), f"{corpus.tokens:,}", f"{seconds:.2f}", rate, machine.peak()


def end_to_end(bench: Bench) -> Rows:
    """Yield the time of edits through a method, from requests in words to a written model."""
    yield "edits", "seconds", "an edit", "peak memory"
    plugins, machine = Plugins.installed(), bench.machine
    try:
        info = plugins.info(bench.method)
    except UnknownMethodError as error:
        yield f"left out: {error}", *("",) * 3
        return
    # A random model believes nothing in one pass: without a bound on passes they would all be made.
    asked = {"layers": bench.shape.layers, "passes": 1}
    asked["statistics"] = {"tokens": bench.shape.tokens}
    known = {one.name for one in attrs.fields(info.config)}
    config = {name: value for name, value in asked.items() if name in known}
    model = random_model(bench.shape, torch.bfloat16, machine.device)
    sizes = bench.shape.edits if bench.full else bench.shape.edits[:-1]
    requests = written_edits(max(sizes) + 1)
    with TemporaryDirectory() as folder:
        editor = Editor(
            model,
            their_tokenizer(bench.shape.config.vocab_size),
            bench.method,
            config,
            plugins=plugins,
            cache=TensorCache(Path(folder)),
        )
        first = "1, with all that is collected once"
        for name, count in ((first, 1), *((f"{size:,}", size) for size in sizes)):
            started = machine.begin()
            editor.edit(requests[-1:] if name == first else requests[:count])
            seconds = machine.wait() - started
            editor.undo()
            yield name, f"{seconds:.2f}", _time(seconds / count), machine.peak()


PARTS: dict[Part, Callable[[Bench], Rows]] = {
    Part.KERNELS: kernels,
    Part.ENGINE: engine,
    Part.MOMENTS: moments,
    Part.END_TO_END: end_to_end,
}


def _copied(machine: Machine) -> float:
    """Return bytes a second that are read and written by a copy much larger than any cache."""
    source = torch.empty(2**30 if machine.gpu else 2**27, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / machine.seconds(lambda: target.copy_(source))


def _multiplied(machine: Machine, dtype: torch.dtype) -> float:
    """Return floating-point operations a second of a large square product."""
    size = 8192 if machine.gpu else 512
    one = torch.randn(size, size, device=machine.device).to(dtype)
    return 2 * size**3 / machine.seconds(lambda: one @ one)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def main(
    shape: Annotated[list[str] | None, typer.Option(help=", ".join(SHAPES))] = None,
    part: Annotated[list[Part] | None, typer.Option(help="All when none is named.")] = None,
    device: Annotated[str, typer.Option(help="By default a GPU where there is one.")] = "",
    method: Annotated[str, typer.Option(help="Of the edits end to end.")] = "memit",
    full: Annotated[bool, typer.Option(help="The largest number of edits too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to the end of this file too.")] = None,
) -> None:
    """Measure and print."""
    machine = Machine(device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_float32_matmul_precision("highest")
    if not machine.gpu:
        torch.set_num_threads(1)
    console = Console(highlight=False, emoji=False, soft_wrap=True, markup=False)

    def say(line: str) -> None:
        console.print(line)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    say(f"{machine.name}, torch {torch.__version__}, {date.today().isoformat()}")
    for name in shape or (["gpt-j-6b", "llama-3-8b"] if machine.gpu else ["tiny"]):
        for one in part or list(Part):
            say(f"\n### {name}: {one.value}\n")
            bench = Bench(shape=SHAPES[name], machine=machine, method=method, full=full)
            for number, cells in enumerate(PARTS[one](bench)):
                say(markdown(cells))
                if number == 0:
                    say(markdown(["---"] * len(cells)))


if __name__ == "__main__":
    typer.run(main)
