"""Pooled states of everything that a scope classifier learns from, and which question each one asks."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.progress import Progress
from kedit_core.tokens import Ids, encode
from kedit_memory.encoders import Encoder
from kedit_memory.garbling import garbled, pieces_of
from kedit_memory.lexicons import Lexicon
from kedit_memory.pooling import Sites
from kedit_memory.readers import Reader, reader_of
from kedit_memory.scope import named_in
from kedit_memory.scope_facts import Facts

_AT_ONCE = 512
_TABLES = ("wordings", "garbled", "others", "neighbours")


@frozen(kw_only=True)
class Examples:
    """Prompts as pooled states, told apart by what they ask.

    Attributes:
        states: (prompts, features) float32, and the words of the prompts behind, if a lexicon reads them.
        wordings: (facts, most) places of each fact's wordings in ``states``, its own prompt first, -1
            behind the last.
        garbled: (facts, most) places of garbled wordings of each fact, likewise.
        others: (facts, most) places of other questions about each fact's subject, likewise.
        neighbours: (facts, most) places of probes that an edit of each fact must leave alone, likewise.
        named: (facts, words) the subjects, as the lexicon gives them.
        subjects: of the facts.
        asked_more: (facts,) bool, whether the other questions are such as subjects of that kind have; else they
            may make no sense.
        prompts: token ids of the base of each place; empty where nobody reads them.
    """

    states: Tensor = field(repr=False)
    wordings: Tensor = field(repr=False)
    garbled: Tensor = field(repr=False)
    others: Tensor = field(repr=False)
    neighbours: Tensor = field(repr=False)
    named: Tensor = field(repr=False)
    subjects: tuple[str, ...] = field(repr=False)
    asked_more: Tensor = field(repr=False)
    prompts: tuple[Ids, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        """Return the number of facts."""
        return len(self.wordings)


def examples_of(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    source: Sites | Encoder,
    progress: Progress,
    *,
    wordings: int = 10,
    others: int = 2,
    garbles: int = 0,
    lexicon: Lexicon | None = None,
    edited: Collection[str] = (),
    chat: bool = False,
    seed: int = 0,
) -> Examples:
    """Return what a model makes of facts, of other questions about their subjects, and of their neighbours.

    Args:
        model: the frozen one, in ``eval`` mode.
        tokenizer: the model's.
        facts: to learn from.
        source: what reads the prompts: blocks whose inputs are pooled, or an encoder.
        progress: hears how far it is.
        wordings: of one fact at the most.
        others: other questions about a subject at the most.
        garbles: garbled wordings of one fact at the most.
        lexicon: reads the words of the prompts too.
        edited: prompts of facts elsewhere; a neighbour that is one of them is in the scope of that one.
        chat: render prompts through the chat template.
        seed: of the choices.
    """
    away = {*edited, *(fact.request.prompt for fact in facts.facts)}
    said = [facts.wordings(fact, wordings, seed) for fact in facts.facts]
    asked = [facts.other_questions(fact, others, seed) for fact in facts.facts]
    near = [tuple(one for one in fact.neighbours if one not in away) for fact in facts.facts]
    pieces = pieces_of(tokenizer)
    made_up = [garbled(facts, fact, garbles, pieces, seed) for fact in facts.facts]
    places: dict[str, int] = {}
    tables = [_table(kind, places) for kind in (said, made_up, asked, near)]
    ids = [one.ids for one in encode(tokenizer, list(places), chat)]
    subjects = tuple(fact.subject for fact in facts.facts)
    return Examples(
        states=_read(reader_of(model, tokenizer, source, model.device, lexicon), ids, progress),
        **dict(zip(_TABLES, tables, strict=True)),
        named=named_in(lexicon, subjects),
        prompts=tuple(ids),
        subjects=subjects,
        asked_more=torch.tensor([facts.asked_more(fact) for fact in facts.facts]),
    )


def _read(reader: Reader, ids: Sequence[Ids], progress: Progress) -> Tensor:
    """Return the states of prompts, (prompts, features)."""
    states = []
    with progress.task("reading what asks the same and what does not", len(ids), "prompts") as done:
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            states.append(reader.states(some, alone=False))
            done(len(some))
    return torch.cat(states)


def _table(texts: Sequence[tuple[str, ...]], places: dict[str, int]) -> Tensor:
    """Return the place of every text, (facts, most), -1 behind the last; new texts get the next places."""
    most = max(1, max(map(len, texts), default=1))
    rows = [[places.setdefault(one, len(places)) for one in own] for own in texts]
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in rows])


def joined(parts: Sequence[Examples]) -> Examples:
    """Return the examples of several sets of facts as one."""
    shifts = torch.tensor([0, *(len(one.states) for one in parts[:-1])]).cumsum(0).tolist()
    tables: Mapping[str, Tensor] = {
        name: _stacked(
            [_shifted(getattr(one, name), by) for one, by in zip(parts, shifts, strict=True)]
        )
        for name in _TABLES
    }
    return Examples(
        states=torch.cat([one.states for one in parts]),
        **tables,
        named=torch.cat([one.named for one in parts]),
        subjects=tuple(subject for one in parts for subject in one.subjects),
        asked_more=torch.cat([one.asked_more for one in parts]),
        prompts=tuple(ids for one in parts for ids in one.prompts),
    )


def _shifted(table: Tensor, by: int) -> Tensor:
    return torch.where(table < 0, table, table + by)


def _stacked(tables: Sequence[Tensor]) -> Tensor:
    most = max(table.shape[1] for table in tables)
    return torch.cat(
        [torch.nn.functional.pad(table, (0, most - table.shape[1]), value=-1) for table in tables]
    )
