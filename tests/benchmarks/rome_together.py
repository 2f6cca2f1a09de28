"""How much faster restored rank-one edits are judged together than one by one, in one process.

    python tests/benchmarks/rome_together.py [--model atlas:gpt2] [--edits 200] [--questions 8]

Without a model it takes an untrained GPT-2 of the atlas's shape. The edits are random: what an edit
says has no bearing on how long it takes to ask. Both ways are warmed up and then timed in turn;
printed are medians and their ratio. On a GPU the Triton kernel is timed against its torch body too.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from kedit_core import Delta, LowRank, Plugins, Weights, layout_of
from kedit_core.scoring import Answered, score_answers
from kedit_rome.kernels import per_row_rank_one
from kedit_rome.together import Asked, score_together

PROMPT_TOKENS, ANSWER_TOKENS = (5, 14), (1, 4)  # as in the atlas


def main(
    model: Annotated[str, typer.Option(help="A source that kedit can open.")] = "",
    edits: Annotated[int, typer.Option(min=1)] = 200,
    questions: Annotated[int, typer.Option(min=1, help="Asked of each edit.")] = 8,
    repeat: Annotated[int, typer.Option(min=1)] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Of a batch judged together.")] = 2048,
    threads: Annotated[int, typer.Option(min=0, help="0 leaves it to torch.")] = 0,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Time both ways of judging and print how they compare."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    opened = _opened(model, device)
    deltas = _random_edits(opened, edits)
    asked = _random_questions(opened, edits, questions)
    ways: dict[str, Callable[[], list[Answered]]] = {
        "one by one": lambda: _one_by_one(opened, deltas, asked),
        "together": lambda: score_together(opened, deltas, asked, tokens=tokens),
    }
    title = (
        f"{edits} edits, {questions} questions each, {device}, {torch.get_num_threads()} threads"
    )
    said = _compare(title, ways, repeat, device)
    alone, beside = said.values()
    same = sum(torch.equal(a.top, b.top) for a, b in zip(alone, beside, strict=True))
    Console().print(f"{same} of {len(asked)} answers are the same")
    if device.startswith("cuda"):
        _compare_kernel(opened, device, repeat)


def _opened(source: str, device: str) -> PreTrainedModel:
    if source:
        opened, _ = Plugins.installed().call_all(
            "open_model", source=source, dtype=torch.float32, device=device
        )
        return opened.eval()
    shape = GPT2Config(
        vocab_size=4096,
        n_embd=256,
        n_inner=1024,
        n_layer=6,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(shape).eval().to(device)


def _random_edits(model: PreTrainedModel, count: int) -> list[Delta]:
    down = layout_of(model).down_of(0)
    return [
        Delta(
            method="rome",
            requests=(),
            parts=(
                LowRank(
                    weight=down.weight,
                    left=torch.randn(down.out_features, 1),
                    right=torch.randn(1, down.in_features),
                ),
            ),
        )
        for _ in range(count)
    ]


def _random_questions(model: PreTrainedModel, edits: int, each: int) -> list[Asked]:
    def ids(shortest: int, longest: int) -> list[int]:
        count = int(torch.randint(shortest, longest + 1, ()))
        return torch.randint(model.config.vocab_size, (count,)).tolist()

    return [
        Asked(delta=edit, prompt=ids(*PROMPT_TOKENS), answer=ids(*ANSWER_TOKENS))
        for edit in range(edits)
        for _ in range(each)
    ]


def _one_by_one(
    model: PreTrainedModel, deltas: list[Delta], questions: list[Asked]
) -> list[Answered]:
    weights = Weights(model)
    each = len(questions) // len(deltas)
    said: list[Answered] = []
    for place, delta in enumerate(deltas):
        own = questions[place * each : (place + 1) * each]
        with weights.add(delta):
            said += score_answers(model, [(one.prompt, one.answer) for one in own])
    return said


def _compare(
    title: str, ways: dict[str, Callable[[], object]], repeat: int, device: str
) -> dict[str, object]:
    """Time two ways in turn, print their medians and the ratio, and return what they computed."""
    said = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            started = perf_counter()
            way()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(perf_counter() - started)
    slow, fast = (median(found) for found in seconds.values())
    table = Table("way", "median", "least", title=title)
    for name, found in seconds.items():
        table.add_row(name, f"{median(found):.6f} s", f"{min(found):.6f} s")
    console = Console()
    console.print(table)
    first, second = ways
    console.print(f"{second} is {slow / fast:.2f} times as fast as {first}")
    return said


def _compare_kernel(model: PreTrainedModel, device: str, repeat: int) -> None:
    """Time the Triton kernel against the torch body it replaces, at the sizes of a full batch."""
    down = layout_of(model).down_of(0)
    body = per_row_rank_one._init_fn  # what the decorator was put on
    for dtype in (torch.float32, torch.bfloat16):
        rows, tokens = 128, 16
        y = torch.randn(rows, tokens, down.out_features, device=device, dtype=dtype)
        x = torch.randn(rows, tokens, down.in_features, device=device, dtype=dtype)
        u, v = (torch.randn(rows, one.shape[2], device=device) for one in (x, y))
        given = (y, x, u, v)
        ways = {
            "torch body": lambda given=given: [body(*given) for _ in range(100)],
            "triton": lambda given=given: [per_row_rank_one(*given) for _ in range(100)],
        }
        _compare(f"100 x per_row_rank_one, {dtype}, {tuple(x.shape)}", ways, repeat, device)


if __name__ == "__main__":
    typer.run(main)
