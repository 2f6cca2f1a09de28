"""Training of a re-ranker: it reads queries with what the search brings up for them, right and wrong.

A step takes queries of all kinds: other wordings of facts, other questions about their subjects, neighbours.
Each is read with the edit that it asks for, if there is one, and with some of its candidates, which are the
hard ones: of the same relation, about the same subject, or near by what the search goes by. The loss is binary
cross-entropy.

Some of the queries that ask for an edit are garbled wordings (``garbling``). So the re-ranker learns to know a
question by its subject too, as long as nothing says that something else is asked.
"""

# Nothing here is secret: the draws only have to come out the same everywhere.
# ruff: noqa: S311

from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kedit_core.progress import Progress
from kedit_memory.cross_encoders import CrossEncoder, Near, Pair, new_cross_encoder
from kedit_memory.decoders import shape_for
from kedit_memory.encoders import Encoder
from kedit_memory.rerankers import Reranker, Reranking
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_examples import Examples

_KINDS = ("wordings", "wordings", "others", "neighbours")
_BETAS = (0.9, 0.98)
_WARM = 20  # one part of so many of the steps
_CLIP = 1.0


@frozen(kw_only=True)
class RerankingLesson:
    """How a re-ranker is trained.

    Attributes:
        candidates: edits that are read with a prompt.
        blocks: of the cross-encoder.
        heads: of its attention; None takes one for every 64 of its width.
        steps: of AdamW.
        queries: of a step.
        negatives: candidates of each query that are read in a step.
        lr: at the most; it rises over the first twentieth and falls to nothing over the second half.
        garbled: share of the queries that ask for an edit which are garbled wordings.
        seed: of the draws and of the weights at the start.
    """

    candidates: int = 8
    blocks: int = 2
    heads: int | None = None
    steps: int = 800
    queries: int = 24
    negatives: int = 2
    lr: float = 1e-3
    garbled: float = 0.5
    seed: int = 0


def train_reranker(
    base: Any,
    tokenizer: Any,
    classifier: ScopeClassifier,
    examples: Examples,
    lesson: RerankingLesson,
    progress: Progress,
    *,
    encoder: Encoder | None = None,
) -> Reranker:
    """Return a re-ranker that was trained on examples; gate and threshold are not calibrated yet.

    Args:
        base: lends its embeddings; it stays as it is.
        tokenizer: the base's.
        classifier: trained; it finds candidates.
        examples: of facts that are not judged later, with their prompts.
        lesson: how to train.
        progress: hears how far it is.
        encoder: reads the pairs; None lets a small decoder do it.
    """
    reads = encoder or shape_for(base, lesson.blocks, lesson.heads)
    width = len(classifier.offset)
    near = Near(threshold=classifier.threshold, temperature=classifier.temperature)
    model = new_cross_encoder(base, tokenizer, reads, width, near, lesson.seed)
    untrained = Reranker(
        reads=reads,
        directions=width,
        near=near,
        weights=_state(model),
        candidates=lesson.candidates,
    )
    draws = _Draws((base, tokenizer), classifier, examples, untrained)
    _descend(model, draws, lesson, progress)
    return evolve(untrained, weights=_state(model))


def _descend(
    model: CrossEncoder, draws: "_Draws", lesson: RerankingLesson, progress: Progress
) -> None:
    """Make all steps."""
    adam = torch.optim.AdamW(model.parameters(), lr=lesson.lr, betas=_BETAS, weight_decay=0.01)
    chance = Random(f"reranker {lesson.seed}")
    with torch.enable_grad(), progress.task("training the re-ranker", lesson.steps, "steps") as on:
        for step in range(lesson.steps):
            for group in adam.param_groups:
                rising, falling = (step + 1) * _WARM / lesson.steps, 2 * (1 - step / lesson.steps)
                group["lr"] = lesson.lr * min(1.0, rising, falling)
            drawn = draws.step(lesson, chance)
            logits = model(drawn.pairs, drawn.queries, drawn.edits)
            loss = binary_cross_entropy_with_logits(logits, drawn.same.to(logits))
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            adam.step()
            on(1)


def _state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().cpu().clone() for name, one in model.state_dict().items()}


@frozen(kw_only=True)
class _Step:
    """What one step reads.

    Attributes:
        pairs: of edits and queries.
        queries: (pairs, width).
        edits: (pairs, width).
        same: (pairs,) bool, whether both ask the same.
    """

    pairs: Sequence[Pair]
    queries: Tensor
    edits: Tensor
    same: Tensor


@frozen(slots=False)
class _Draws:
    """What training draws from."""

    beside: tuple[Any, Any]
    classifier: ScopeClassifier
    examples: Examples
    reranker: Reranker

    @cached_property
    def search(self) -> Reranking:
        """Return the search over all facts' edits, each under its fact's own prompt."""
        own = self.examples.wordings[:, 0]
        memory = self.classifier.embed_edits(self.examples.states[own], self.examples.named)
        prompts = [self.examples.prompts[place] for place in own.tolist()]
        return Reranking(*self.beside, self.reranker, memory, prompts)

    @cached_property
    def asks(self) -> dict[int, int]:
        """Return which fact each prompt asks for, if it asks for one."""
        return {
            place: fact
            for kind in ("garbled", "wordings")  # what is a wording of a fact asks for that one
            for fact, row in enumerate(self.rows[kind])
            for place in row
        }

    @cached_property
    def rows(self) -> dict[str, list[list[int]]]:
        """Return the places of each fact's prompts, by kind."""
        return {
            kind: [
                [place for place in row if place >= 0]
                for row in getattr(self.examples, kind).tolist()
            ]
            for kind in (*_KINDS, "garbled")
        }

    def step(self, lesson: RerankingLesson, chance: Random) -> _Step:
        """Return what a step reads."""
        drawn = self._drawn(lesson, chance)
        prompts = [self.examples.prompts[one.place] for one in drawn]
        vectors = self.classifier.embed(self.examples.states[[one.place for one in drawn]])
        near = self.search.candidates(vectors, prompts)
        rows, edits, said = [], [], []
        for row, query in enumerate(drawn):
            for edit in self._edits(query, near[row], lesson, chance):
                rows.append(row)
                edits.append(edit)
                said.append(self._said(edit, query.place, chance))
        asked = [self.asks.get(drawn[row].place) for row in rows]
        return _Step(
            pairs=[
                Pair(edit=self.examples.prompts[place], query=prompts[row])
                for place, row in zip(said, rows, strict=True)
            ],
            queries=vectors[rows],
            edits=self.classifier.embed_edits(
                self.examples.states[said], self.examples.named[edits]
            ),
            same=torch.tensor([one == edit for one, edit in zip(asked, edits, strict=True)]),
        )

    def _drawn(self, lesson: RerankingLesson, chance: Random) -> list["_Query"]:
        """Return the queries of a step."""
        found: list[_Query] = []
        while len(found) < lesson.queries:
            kind, fact = chance.choice(_KINDS), chance.randrange(len(self.examples))
            if (
                kind == "wordings"
                and chance.random() < lesson.garbled
                and self.rows["garbled"][fact]
            ):
                kind = "garbled"
            if self.rows[kind][fact]:
                place = chance.choice(self.rows[kind][fact])
                found.append(_Query(kind=kind, fact=fact, place=place))
        return found

    def _edits(
        self, query: "_Query", near: Sequence[int], lesson: RerankingLesson, chance: Random
    ) -> list[int]:
        """Return the edits that a query is read with: the one that it asks for, and hard ones."""
        asked = self.asks.get(query.place)
        wrong = [one for one in near if one != asked]
        if query.kind == "garbled":  # little is left to tell from other questions about the subject
            names = self.examples.subjects
            wrong = [one for one in wrong if names[one] != names[query.fact]]
        others = chance.sample(wrong, min(lesson.negatives, len(wrong)))
        if asked is None and query.fact not in others:
            others = [query.fact, *others[1:]]  # whose subject or neighbour it is
        return others if asked is None else [asked, *others]

    def _said(self, edit: int, query: int, chance: Random) -> int:
        """Return the place of a prompt of an edit, half of the time its own, not the query's if it can be."""
        row = self.rows["wordings"][edit]
        others = [place for place in row if place != query] or row
        return row[0] if row[0] != query and chance.random() < 0.5 else chance.choice(others)


@frozen(kw_only=True)
class _Query:
    """A prompt that a step asks.

    Attributes:
        kind: of the tables of ``Examples``.
        fact: whose row it stands in.
        place: of the prompt.
    """

    kind: str
    fact: int
    place: int
