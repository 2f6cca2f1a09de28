"""What the counterfactual model is trained on: one edit and one query a row, drawn by seed and step.

A step's rows are a function of the seed and of the step's number alone, so training that goes on after an
interruption draws what it would have drawn.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.tokens import Encoded, Ids, encode, encode_target
from kedit_memory.decoders import Padded, Text, padded
from kedit_memory.scope_facts import Facts
from kedit_serac.counterfactual import edit_text

_STOP = "."
_LONGEST = 8  # tokens of a random target
_IGNORED = -100


@frozen(kw_only=True)
class Asked:
    """One fact, tokenised.

    Attributes:
        wordings: prompts that ask for it, its own first.
        targets: per wording the answers it may be given, as they continue that wording.
        neighbours: prompts that its edit must leave alone.
    """

    wordings: tuple[Ids, ...]
    targets: tuple[tuple[Ids, ...], ...] = field(repr=False)
    neighbours: tuple[Ids, ...] = field(repr=False)


def asked_of(
    tokenizer: Any, facts: Facts, *, wordings: int, chat: bool, seed: int
) -> tuple[Asked, ...]:
    """Return facts as token ids.

    Args:
        tokenizer: of the base.
        facts: to ask for.
        wordings: of one fact at the most.
        chat: render prompts through the chat template.
        seed: of the choice among wordings.
    """
    found = []
    for fact in facts.facts:
        prompts = encode(tokenizer, facts.wordings(fact, wordings, seed), chat)
        near = encode(tokenizer, fact.neighbours, chat)
        answers = [one for one in (fact.request.target_new, fact.request.target_true) if one]
        joiner = fact.request.joiner
        targets = [_continuations(tokenizer, one, answers, joiner) for one in prompts]
        found.append(
            Asked(
                wordings=tuple(one.ids for one in prompts),
                targets=tuple(targets),
                neighbours=tuple(one.ids for one in near),
            )
        )
    return tuple(found)


def _continuations(
    tokenizer: Any, prompt: Encoded, answers: Sequence[str], joiner: str
) -> tuple[Ids, ...]:
    return tuple(encode_target(tokenizer, prompt, joiner + answer) for answer in answers)


def stop_of(tokenizer: Any) -> Ids:
    """Return the tokens of a full stop, as it ends a sentence."""
    return tuple(tokenizer(_STOP, add_special_tokens=False)["input_ids"])


@frozen(kw_only=True)
class Row:
    """An edit, a query and the answer that follows from both."""

    edit: Text
    query: Ids
    answer: Ids  # the target, without what ends it

    def text(self, stop: Ids) -> Text:
        """Return the whole row as it is read."""
        return self.edit.then(self.query).then((*self.answer, *stop))


def row_of(edited: Asked, wording: int, query: int, target: int) -> Row:
    """Return a row whose edit is asked for in one wording, and the query in another."""
    return Row(
        edit=edit_text(edited.wordings[wording], edited.targets[wording][target]),
        query=edited.wordings[query],
        answer=edited.targets[query][target],
    )


def drawn(
    asked: Sequence[Asked], count: int, random_targets: float, vocabulary: int, chance: Random
) -> list[Row]:
    """Return training rows.

    Args:
        asked: facts to draw from.
        count: of rows.
        random_targets: share of them whose target is a random string of tokens.
        vocabulary: ids below which these are.
        chance: draws.
    """
    rows = []
    for _ in range(count):
        fact, giver = chance.choice(asked), chance.choice(asked)
        wording = chance.randrange(len(fact.wordings))
        query = chance.randrange(len(fact.wordings))
        if chance.random() < random_targets:
            target = tuple(chance.randrange(vocabulary) for _ in range(chance.randint(1, _LONGEST)))
        else:
            target = chance.choice(chance.choice(giver.targets))
        edit = edit_text(fact.wordings[wording], target)
        rows.append(Row(edit=edit, query=fact.wordings[query], answer=target))
    return rows


@frozen(kw_only=True)
class Batch:
    """Rows side by side, padded on the right.

    Attributes:
        text: what is read.
        labels: (rows, tokens) the token that follows each, -100 where that is not learned.
        targets: (rows, tokens) bool, where ``labels`` are of the target, not of what ends it.
    """

    text: Padded
    labels: Tensor
    targets: Tensor


def batch_of(rows: Sequence[Row], stop: Ids) -> Batch:
    """Return rows side by side."""
    text = padded([row.text(stop) for row in rows], left=False)
    labels = torch.full_like(text.codes, _IGNORED)
    targets = torch.zeros_like(text.mask)
    for place, row in enumerate(rows):
        begin = len(row.edit.codes) + len(row.query) - 1
        behind = (*row.answer, *stop)
        labels[place, begin : begin + len(behind)] = torch.tensor(behind)
        targets[place, begin : begin + len(row.answer)] = True
    return Batch(text=text, labels=labels, targets=targets)
