"""How much of the world a model knows: greedy exact recall, by set and by kind of opening.

``python -m kedit_atlas.measure MODEL`` prints the table; MODEL is a name of the atlas or a folder.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kedit_atlas.world import SHARES, Fact, load_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPENINGS: Mapping[str, Callable[[Fact], Sequence[str]]] = {
    "trained": lambda fact: fact.openings,
    "left out": lambda fact: fact.paraphrases,
    "never trained": lambda fact: fact.unseen,
}


@frozen(kw_only=True)
class Question:
    """A prompt and the one answer that counts."""

    prompt: str
    answer: str


def questions(facts: Sequence[Fact], openings: str) -> list[Question]:
    """Every fact asked in all its openings of one kind, a key of ``OPENINGS``."""
    return [
        Question(prompt=text, answer=fact.object)
        for fact in facts
        for text in OPENINGS[openings](fact)
    ]


@torch.inference_mode()
def answered(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    asked: Sequence[Question],
    batch_size: int = 128,
) -> Tensor:
    """Whether the greedy continuation of each prompt begins with its answer, bool (questions,).

    The first |answer| greedy tokens are the answer's exactly when each answer token is the
    likeliest one after the prompt and the answer so far: one forward pass decides.
    """
    prompts = tokenizer([question.prompt for question in asked])["input_ids"]
    answers = tokenizer([f" {question.answer}" for question in asked], add_special_tokens=False)[
        "input_ids"
    ]
    right = torch.zeros(len(asked), dtype=torch.bool)  # (questions,)
    by_length = sorted(range(len(asked)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for start in range(0, len(asked), batch_size):
        some = by_length[start : start + batch_size]
        rows = [torch.tensor(prompts[i] + answers[i]) for i in some]
        # Padding stands on the right, where no answer token attends to it.
        ids = pad_sequence(rows, batch_first=True).to(model.device)  # (rows, length)
        best = model(input_ids=ids[:, :-1]).logits.argmax(-1)  # (rows, length - 1)
        hits = (best == ids[:, 1:]).cpu()
        for row, i in enumerate(some):
            first = len(prompts[i]) - 1
            right[i] = hits[row, first : first + len(answers[i])].all()
    return right


def recall(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    openings: str,
) -> float:
    """The share of right answers over all facts and their openings of one kind."""
    return float(answered(model, tokenizer, questions(facts, openings)).float().mean())


def main(model: str) -> None:
    """Print recall by set and kind of opening as a table."""
    from rich.console import Console
    from rich.table import Table

    from kedit_atlas.models import SHAPES, open_folder, open_shipped

    opened, tokenizer = open_shipped(model) if model in SHAPES else open_folder(Path(model))
    sets = {name: load_world().of(name) for name in SHARES}
    hits = {
        (name, kind): answered(opened, tokenizer, questions(facts, kind)).float()
        for name, facts in sets.items()
        for kind in OPENINGS
    }
    table = Table("set", "facts", *OPENINGS, title=f"greedy exact recall of {model}")
    for name, facts in sets.items():
        table.add_row(
            name, str(len(facts)), *(f"{hits[name, kind].mean():.2%}" for kind in OPENINGS)
        )
    overall = [torch.cat([hits[name, kind] for name in sets]).mean() for kind in OPENINGS]
    table.add_row("all", str(sum(map(len, sets.values()))), *(f"{share:.2%}" for share in overall))
    Console().print(table)


if __name__ == "__main__":
    import typer

    typer.run(main)
