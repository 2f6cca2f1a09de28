"""Training of the scope classifier: which prompts ask the same, learned from facts that nobody judges later.

A step takes a memory of some facts, each under one of its wordings, and queries: other wordings of facts in it,
which should meet their own, and so should garbled ones (``garbling``); and other questions about the same
subjects, neighbours, and wordings of facts that are not in it, which should meet none. With s the score of a
query and an edit (``scope``), l = a (s - b), and y whether the two ask the same, the loss is binary
cross-entropy, summed over the memory:

    Σ log(1 + exp(-l)) where y  +  Σ log(1 + exp(l)) where not,

so that what is hard in a large memory counts most. Memories of all sizes are seen, up to all facts.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.nn.functional import dropout, normalize, softplus

from kedit_core.progress import Progress
from kedit_memory.encoders import Encoder
from kedit_memory.lexicons import Lexicon
from kedit_memory.pooling import Sites
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_examples import Examples

_SHARP, _EDGE, _WORDS = 3.0, 0.5, 0.0  # log a, b and log w at the start
_FASTER = 10  # than the map these are learned
_DECAY = 3.0  # of the map, so strong that it keeps what many prompts agree on
_QUERIES = {"wordings": 128, "garbled": 96, "others": 96, "neighbours": 64, "absent": 64}
_SMALLEST = 32


@frozen(kw_only=True)
class Lesson:
    """How a scope classifier is trained.

    Attributes:
        width: of its directions.
        steps: of Adam.
        lr: at the start; it falls to nothing over the second half.
        dropout: share of the pooled states that is hidden at each step.
        seed: of the draws and of the projection's start.
    """

    width: int = 256
    steps: int = 1200
    lr: float = 1e-3
    dropout: float = 0.05
    seed: int = 0


def train_scope(
    examples: Examples, start: ScopeClassifier, lesson: Lesson, progress: Progress
) -> ScopeClassifier:
    """Return a classifier that was trained on examples; its threshold is not calibrated yet.

    Args:
        examples: of facts that are not judged later.
        start: an earlier classifier to go on from, or one that was not trained yet (``untrained``); its
            lexicon read the examples.
        lesson: how to train.
        progress: hears how far it is.
    """
    chance = torch.Generator().manual_seed(lesson.seed)
    learner = _Learner(examples, start, lesson, chance)
    with torch.enable_grad(), progress.task("training the scope", lesson.steps, "steps") as done:
        for step in range(lesson.steps):
            learner.step(_draw(examples, chance), min(1.0, 2 * (1 - step / lesson.steps)))
            done(1)
    return learner.classifier()


class _Learner:
    """A classifier in training, on states that are centred and scaled."""

    def __init__(
        self,
        examples: Examples,
        start: ScopeClassifier,
        lesson: Lesson,
        chance: torch.Generator,
    ) -> None:
        words = examples.named.shape[1]
        features = examples.states.shape[1] - words
        states, self._said = examples.states[:, :features], examples.states[:, features:]
        self._centre, self._spread = states.mean(0), states.std(0).clamp(min=1e-6)
        self._states = (states - self._centre) / self._spread
        self._named, self._start, self._lesson, self._chance = examples.named, start, lesson, chance
        if start.projection.numel():
            rows = torch.cat([start.projection, start.leaning[None, :-1]])
            matrix = rows * self._spread
            shift = torch.cat([start.offset, start.leaning[-1:]]) + rows @ self._centre
        else:
            matrix = torch.randn(lesson.width + 1, features, generator=chance) / features**0.5
            matrix[-1] = 0.0
            shift = torch.zeros(lesson.width + 1)
        weight = math.log(start.words) if start.words else _WORDS
        self._map = matrix.requires_grad_(), shift.requires_grad_()  # the last row is the leaning
        self._rest = [torch.tensor(one, requires_grad=True) for one in (_SHARP, _EDGE, weight)]
        self._adam = torch.optim.AdamW(
            [
                {"params": self._map, "weight_decay": _DECAY},
                {"params": self._rest, "weight_decay": 0.0},
            ]
        )

    def step(self, drawn: "_Drawn", rate: float) -> None:
        """Learn from what was drawn, at a share of the learning rate."""
        for group, lr in zip(self._adam.param_groups, (1, _FASTER), strict=True):
            group["lr"] = lr * rate * self._lesson.lr
        states = self._states[torch.cat([drawn.memory, drawn.queries])]
        if self._lesson.dropout:
            with _seeded(self._chance):
                states = dropout(states, self._lesson.dropout)
        matrix, shift = self._map
        mapped = states @ matrix.T + shift
        found, leanings = normalize(mapped[:, :-1], dim=1), torch.tanh(mapped[:, -1:])
        sharp, edge, weight = self._rest
        edits, shared = len(drawn.memory), self._said[drawn.queries] @ self._named[drawn.facts].T
        scores = found[edits:] @ found[:edits].T + weight.exp() * shared + leanings[edits:]
        loss = _loss(sharp.exp() * (scores - edge), drawn.own)
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()

    def classifier(self) -> ScopeClassifier:
        """Return what was learned, for states as they are."""
        matrix, shift = (one.detach() for one in self._map)
        sharp, threshold, weight = (float(one.detach()) for one in self._rest)
        rows = matrix / self._spread
        offsets = shift - rows @ self._centre
        return evolve(
            self._start,
            projection=rows[:-1],
            offset=offsets[:-1],
            leaning=torch.cat([rows[-1], offsets[-1:]]),
            threshold=threshold,
            temperature=math.exp(-sharp),
            words=math.exp(weight) if self._named.shape[1] else 0.0,
        )


def untrained(source: Sites | Encoder, lexicon: Lexicon | None = None) -> ScopeClassifier:
    """Return a classifier that has learned nothing and holds no map yet.

    Args:
        source: what reads prompts for it.
        lexicon: what reads their words, if anything does.
    """
    return ScopeClassifier(
        projection=torch.empty(0, 0),
        offset=torch.empty(0),
        leaning=torch.empty(0),
        sites=source if isinstance(source, Sites) else Sites(means=(), lasts=()),
        threshold=1.0,
        temperature=1.0,
        encoder=None if isinstance(source, Sites) else source,
        lexicon=lexicon,
    )


@contextmanager
def _seeded(chance: torch.Generator) -> Iterator[None]:
    """Let functions that take no generator draw from this one's stream, and nobody else notice."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=chance)))
        yield


@frozen(kw_only=True)
class _Drawn:
    """One step's prompts, as places in the pooled states.

    Attributes:
        facts: (edits,) whose they are.
        memory: (edits,).
        queries: (queries,).
        own: (queries,) which edit each should meet, -1 for none.
    """

    facts: Tensor
    memory: Tensor
    queries: Tensor
    own: Tensor


def _draw(examples: Examples, chance: torch.Generator) -> _Drawn:
    facts = len(examples)
    order = torch.randperm(facts, generator=chance)
    sizes = [size for size in (_SMALLEST, 128, 512, 2048) if size < facts] + [facts]
    held = sizes[int(torch.randint(len(sizes), (1,), generator=chance))]
    inside, absent = order[:held], order[held:]
    memory, _ = _one_of(examples.wordings, inside, chance)
    queries, owns = [], []
    for kind, most in _QUERIES.items():
        pool = absent if kind == "absent" else inside
        some = pool[torch.randperm(len(pool), generator=chance)[:most]]
        table = examples.wordings if kind == "absent" else getattr(examples, kind)
        places, there = _one_of(table, some, chance)
        own = torch.full((len(some),), -1)
        if kind in ("wordings", "garbled"):
            among = torch.full((facts,), -1)
            among[inside] = torch.arange(held)
            own = among[some]
            there = there & (places != memory[own])  # the same wording needs no learning
        queries.append(places[there])
        owns.append(own[there])
    return _Drawn(facts=inside, memory=memory, queries=torch.cat(queries), own=torch.cat(owns))


def _one_of(table: Tensor, facts: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return one place of each fact's row, and which facts have any."""
    rows = table[facts]
    count = (rows >= 0).sum(1)
    chosen = (torch.rand(len(rows), generator=chance) * count).long()
    return rows[torch.arange(len(rows)), chosen], count > 0


def _loss(logits: Tensor, own: Tensor) -> Tensor:
    """Return binary cross-entropy of every query with every edit, a mean over queries.

    Args:
        logits: (queries, edits).
        own: (queries,) which edit each should meet, -1 for none.
    """
    same = own[:, None] == torch.arange(logits.shape[1])
    against = torch.where(same, 0.0, softplus(logits)).sum(1).mean()
    return against + softplus(-logits[same]).mean() if same.any() else against
