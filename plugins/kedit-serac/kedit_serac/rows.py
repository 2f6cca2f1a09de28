"""What the counterfactual model is trained on: one edit and one query a row, drawn by seed and step.

A step's rows are a function of the seed and of the step's number alone, so training that goes on after an
interruption draws what it would have drawn.
"""

from collections.abc import Collection, Sequence
from random import Random
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core import Probe
from kedit_core.tokens import Encoded, Ids, encode, encode_target
from kedit_memory.decoders import Padded, Text, padded
from kedit_memory.disjoint import normal
from kedit_memory.garbling import garbled, pieces_of
from kedit_memory.scope_facts import Facts
from kedit_serac.counterfactual import edit_text

_STOP = "."
_LONGEST = 8  # tokens of a random target
_IGNORED = -100


@frozen(kw_only=True)
class Neighbour:
    """A prompt that an edit must leave alone, and its answer."""

    prompt: Ids
    answer: Ids


@frozen(kw_only=True)
class Asked:
    """One fact, tokenised.

    Attributes:
        wordings: prompts that ask for it, its own first.
        garbled: prompts about its subject in made-up words.
        targets: per wording the answers it may be given, as they continue that wording.
        neighbours: prompts that its edit must leave alone, with their answers.
    """

    wordings: tuple[Ids, ...]
    garbled: tuple[Ids, ...] = field(repr=False)
    targets: tuple[tuple[Ids, ...], ...] = field(repr=False)
    neighbours: tuple[Neighbour, ...] = field(repr=False)


def asked_of(
    tokenizer: Any,
    facts: Facts,
    *,
    wordings: int,
    garbles: int = 0,
    chat: bool,
    seed: int,
    judged: Collection[str] = (),
) -> tuple[Asked, ...]:
    """Return facts as token ids.

    Args:
        tokenizer: of the base.
        facts: to ask for.
        wordings: of one fact at the most.
        garbles: garbled wordings of one fact at the most.
        chat: render prompts through the chat template.
        seed: of the choice among wordings.
        judged: prompts that will be edited, normalised; they are nobody's neighbours here, since what the
            base says of them is what an edit changes.
    """
    found = []
    pieces = pieces_of(tokenizer)
    for fact in facts.facts:
        made_up = encode(tokenizer, garbled(facts, fact, garbles, pieces, seed), chat)
        prompts = encode(tokenizer, facts.wordings(fact, wordings, seed), chat)
        answers = [one for one in (fact.request.target_new, fact.request.target_true) if one]
        joiner = fact.request.joiner
        near = [one for one in fact.request.locality if normal(one.prompt) not in judged]
        targets = [_continuations(tokenizer, one, answers, joiner) for one in prompts]
        found.append(
            Asked(
                wordings=tuple(one.ids for one in prompts),
                garbled=tuple(one.ids for one in made_up),
                targets=tuple(targets),
                neighbours=neighbours_of(tokenizer, near, chat),
            )
        )
    return tuple(found)


def _continuations(
    tokenizer: Any, prompt: Encoded, answers: Sequence[str], joiner: str
) -> tuple[Ids, ...]:
    return tuple(encode_target(tokenizer, prompt, joiner + answer) for answer in answers)


def neighbours_of(tokenizer: Any, probes: Sequence[Probe], chat: bool) -> tuple[Neighbour, ...]:
    """Return probes as token ids, each with the first of its answers.

    Args:
        tokenizer: of the base.
        probes: prompts to leave alone.
        chat: render prompts through the chat template.
    """
    prompts = encode(tokenizer, [one.prompt for one in probes], chat)
    return tuple(
        Neighbour(prompt=prompt.ids, answer=encode_target(tokenizer, prompt, f" {one.answers[0]}"))
        for one, prompt in zip(probes, prompts, strict=True)
    )


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


@frozen(kw_only=True)
class Draws:
    """How rows are drawn.

    Attributes:
        random_targets: share of them whose target is a random string of tokens.
        garbled: share of the queries that ask for an edit in made-up words.
        tokens: ids of which these are.
        chance: draws.
    """

    random_targets: float
    garbled: float = 0.0
    tokens: Sequence[int] = field(repr=False)
    chance: Random = field(repr=False)

    def rows(self, asked: Sequence[Asked], count: int) -> list[Row]:
        """Return rows that ask for what their edit says.

        Args:
            asked: facts to draw from.
            count: of rows.
        """
        rows = []
        for _ in range(count):
            fact = self.chance.choice(asked)
            wording, query = self.chance.choice(fact.wordings), self._query(fact)
            target = self._target(asked)
            rows.append(Row(edit=edit_text(wording, target), query=query, answer=target))
        return rows

    def rows_apart(self, asked: Sequence[Asked], count: int) -> list[Row]:
        """Return rows that ask for a neighbour of what their edit says; none where no fact has one.

        Args:
            asked: facts to draw from.
            count: of rows.
        """
        asked_near = [one for one in asked if one.neighbours]
        rows = []
        for _ in range(count if asked_near else 0):
            fact = self.chance.choice(asked_near)
            edit = edit_text(self.chance.choice(fact.wordings), self._target(asked))
            near = self.chance.choice(fact.neighbours)
            rows.append(Row(edit=edit, query=near.prompt, answer=near.answer))
        return rows

    def _query(self, fact: Asked) -> Ids:
        made_up = fact.garbled and self.chance.random() < self.garbled
        return self.chance.choice(fact.garbled if made_up else fact.wordings)

    def _target(self, asked: Sequence[Asked]) -> Ids:
        chance = self.chance
        if chance.random() < self.random_targets:
            length = chance.randint(1, _LONGEST)
            return tuple(chance.choice(self.tokens) for _ in range(length))
        return chance.choice(chance.choice(chance.choice(asked).targets))


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
