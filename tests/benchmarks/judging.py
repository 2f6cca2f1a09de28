"""How much faster edits are judged together than one question at a time, and that both say the same.

    python tests/benchmarks/judging.py [--requests 1000] [--exact 100] [--models atlas:gpt2,atlas:llama]

Judges the first requests of ``atlas:editable`` on both embedded models, in one process with one
thread: by exact match, preference and probability on all axes, which asks for every prompt, paraphrase
and probe with its answer and with the answer's rival. *Together* is ``Editor.evaluate`` of all requests.
*One at a time* tokenises each prompt with each answer and reads them in a plain forward of their own:
no padding, no cache. *Request by request* is ``Editor.evaluate`` of one request after the other. Printed
are seconds of the processor, so that other work on the machine counts little.

Every 0/1 score must be the same, and every NLL within 1e-4 in float32 and, for the first ``--exact``
requests, within 1e-9 in float64. Exits 1 when one is not, or when judging together is less than ten times
as fast as one at a time.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from time import process_time
from typing import Annotated, TypeVar

import torch
import typer
from attrs import frozen
from rich.console import Console

from kedit_core import EditBatch, Editor, EditRequest, EvalReport, Plugins, encode
from kedit_core.cli.screen import quiet_transformers
from kedit_core.questions import AXES, Question, questions_of
from kedit_core.scoring import score_answers
from kedit_core.tokens import encode_target

T = TypeVar("T")

BAR = 10
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-9}
PROTOCOLS = ("exact", "preference", "probability")
METRICS = [f"{axis}.{protocol}" for axis in AXES for protocol in PROTOCOLS]
console = Console(highlight=False, soft_wrap=True)


@frozen(kw_only=True)
class Said:
    """What one plain forward says of an answer."""

    nll: float
    exact: bool


@frozen(kw_only=True)
class Plain:
    """What plain forwards say of a request: its scores, and the NLL of each prompt with each answer."""

    scores: Mapping[str, float]
    nlls: Sequence[float]


def main(
    requests: Annotated[int, typer.Option(min=1, help="Judged of atlas:editable.")] = 1000,
    exact: Annotated[int, typer.Option(min=1, help="Of them in float64 too.")] = 100,
    models: Annotated[str, typer.Option(help="Joined by commas.")] = "atlas:gpt2,atlas:llama",
) -> None:
    """Time all ways of judging, print how they compare, and hold them to the bar."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    plugins = Plugins.installed()
    asked = list(plugins.call_all("read_requests", source="atlas:editable"))[:requests]
    good = True
    for name in models.split(","):
        with quiet_transformers():
            single, double = (Editor.from_pretrained(name, dtype=dtype) for dtype in CLOSE)
        good &= _compared(name, single, asked, timed=True)
        good &= _compared(name, double, asked[:exact], timed=False)
    sys.exit(0 if good else 1)


def _compared(name: str, editor: Editor, asked: Sequence[EditRequest], *, timed: bool) -> bool:
    """Judge both ways, print how they compare, and return whether they do as they must."""
    editor.evaluate(asked[:10], METRICS)  # warm
    report, together = _seconds(lambda: editor.evaluate(asked, METRICS))
    plain, alone = _seconds(lambda: [_one_by_one(editor, request) for request in asked])
    good = _same(name, editor, asked, report, plain)
    if timed:
        _, apart = _seconds(lambda: [editor.evaluate(one, METRICS) for one in asked])
        for way, taken in (("together", together), ("one at a time", alone), ("by request", apart)):
            console.print(f"  {way:<14}{taken:8.2f} s  {taken / together:6.1f} x")
        good &= alone >= BAR * together
    return good


def _seconds(work: Callable[[], T]) -> tuple[T, float]:
    """Return what came of some work, and the seconds that the processor spent on it."""
    started = process_time()
    return work(), process_time() - started


def _one_by_one(editor: Editor, request: EditRequest) -> Plain:
    """Return a request's scores, each question read with each of its answers in a plain forward."""
    values: dict[str, list[float]] = defaultdict(list)
    nlls: list[float] = []
    for axis, question in _questions([request]):
        said = {text: _plain(editor, question, text) for text in _answers(question)}
        nlls += [one.nll for one in said.values()]
        own = [said[answer] for answer in question.answers]
        found = {
            "exact": float(any(one.exact for one in own)),
            "probability": max(float(torch.tensor(-one.nll).exp()) for one in own),
        }
        if question.rival is not None:
            found["preference"] = float(own[0].nll < said[question.rival].nll)
        for protocol, value in found.items():
            values[f"{axis}.{protocol}"].append(value)
            if question.group:
                values[f"{axis}.{protocol}:{question.group}"].append(value)
    means = {metric: sum(found) / len(found) for metric, found in values.items()}
    return Plain(scores=means, nlls=nlls)


def _questions(asked: Sequence[EditRequest]) -> Iterator[tuple[str, Question]]:
    batch = EditBatch(requests=asked)
    for axis in AXES:
        for question in questions_of(batch, axis):
            yield axis, question


def _answers(question: Question) -> dict[str, None]:
    """Return a question's answers and their rival, each once."""
    return dict.fromkeys([*question.answers, *([question.rival] if question.rival else [])])


@torch.no_grad()
def _plain(editor: Editor, question: Question, answer: str) -> Said:
    prompt, target = _ids(editor, question, answer)
    ids = torch.tensor([[*prompt, *target]])
    logits = editor.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    own = logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None])
    return Said(nll=-float(own.mean()), exact=logits.argmax(-1).tolist() == list(target))


def _ids(
    editor: Editor, question: Question, answer: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    read = encode(editor.tokenizer, [question.prompt])[0]
    return read.ids, encode_target(editor.tokenizer, read, question.joined(answer))


def _same(
    name: str,
    editor: Editor,
    asked: Sequence[EditRequest],
    report: EvalReport,
    plain: Sequence[Plain],
) -> bool:
    """Print and return whether all 0/1 scores are the same, and all NLLs as close as they must be."""
    expected = {
        (request.id, metric): value
        for request, own in zip(asked, plain, strict=True)
        for metric, value in own.scores.items()
    }
    scores = {(one.request, one.metric): one.value for one in report.scores}
    binary = [key for key in expected if "probability" not in key[1]]
    differing = [key for key in binary if scores[key] != expected[key]]
    questions = [question for request in asked for _, question in _questions([request])]
    pairs = [(question, answer) for question in questions for answer in _answers(question)]
    together = score_answers(editor.model, [_ids(editor, *pair) for pair in pairs], share=True)
    nlls = chain.from_iterable(own.nlls for own in plain)
    furthest = max(abs(a.nll - b) for a, b in zip(together, nlls, strict=True))
    dtype = editor.model.dtype
    console.print(
        f"{name} {str(dtype).removeprefix('torch.')}: {len(asked)} requests, {len(pairs)} prompts with an "
        f"answer; {len(differing)} of {len(binary)} 0/1 scores differ; NLLs differ by {furthest:.1e} at most"
    )
    return not differing and scores.keys() == expected.keys() and furthest <= CLOSE[dtype]


if __name__ == "__main__":
    typer.run(main)
