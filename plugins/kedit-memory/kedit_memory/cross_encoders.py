"""A cross-encoder reads an edit's prompt and a query together and says whether both ask the same.

The small one is a decoder on the embeddings of the base (``decoders``). It reads

    edit prompt | query

where each token's kind says which of the two it is of and whether the other one holds it too, so that names
which nobody trained on are known to be the same. With h the last token's state, q and e the directions that
the scope classifier gives query and edit, and l = (q·e - threshold) / temperature, their cosine as a logit, it
says

    logit = 4 tanh(l / 4) + MLP(h, q ⊙ e)

where the last layer of the MLP is zero at the start: training begins at what the cosines say.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.tokens import Ids
from kedit_memory.decoders import PLAIN, Decoder, Padded, Shape, Text, padded

_BETWEEN = -1
_EDIT, _EDIT_SHARED, _QUERY_SHARED = 1, 2, 3
_ROWS, _TOKENS = 256, 8192
_INNER, _BOUND = 64, 4.0


@frozen(kw_only=True)
class Near:
    """How a scope classifier turns a cosine into a logit.

    Attributes:
        threshold: cosine of logit 0.
        temperature: cosines of a logit's unit.
    """

    threshold: float
    temperature: float

    def logit(self, cosines: Tensor) -> Tensor:
        """Return the logits of cosines."""
        return (cosines - self.threshold) / self.temperature


@frozen(kw_only=True)
class Pair:
    """An edit's prompt and a query, as token ids of the base."""

    edit: Ids
    query: Ids

    def text(self) -> Text:
        """Return what a decoder reads of both."""
        first, second = set(self.edit), set(self.query)
        return Text(
            codes=(*self.edit, _BETWEEN, *self.query),
            kinds=(
                *(_EDIT_SHARED if one in second else _EDIT for one in self.edit),
                PLAIN,
                *(_QUERY_SHARED if one in first else PLAIN for one in self.query),
            ),
        )


class CrossEncoder(nn.Module):
    """A decoder that reads pairs, with a head of one logit."""

    def __init__(self, shape: Shape, directions: int) -> None:
        """Make one with random weights, for directions of a width."""
        super().__init__()
        self.shape = shape
        self.decoder = Decoder(shape, marks=1, kinds=3)
        self.inner = nn.Linear(shape.width + directions, _INNER)
        self.outer = nn.Linear(_INNER, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(
        self, base: Any, text: Padded, queries: Tensor, edits: Tensor, near: Near
    ) -> Tensor:
        """Return logits (rows,) that both halves ask the same.

        Args:
            base: lends its embeddings.
            text: pairs, padded on the left.
            queries: (rows, directions) of the queries.
            edits: (rows, directions) of the edits.
            near: turns cosines into logits.
        """
        read = self.decoder(base, text)[:, -1]  # (rows, width)
        both = queries.to(read) * edits.to(read)  # (rows, directions)
        start = near.logit(both.sum(1)) / _BOUND
        scaled = both * both.shape[1] ** 0.5  # components of the size of the states'
        inner = nn.functional.gelu(self.inner(torch.cat([read, scaled], 1)))
        logits: Tensor = _BOUND * torch.tanh(start) + self.outer(inner)[:, 0]
        return logits

    @torch.no_grad()
    def logits(
        self, base: Any, pairs: Sequence[Pair], queries: Tensor, edits: Tensor, near: Near
    ) -> Tensor:
        """Return logits of pairs, (pairs,) float32 on the CPU, those of like length read together.

        Args:
            base: lends its embeddings.
            pairs: to read.
            queries: (pairs, directions) of the queries.
            edits: (pairs, directions) of the edits.
            near: turns cosines into logits.
        """
        texts = [pair.text() for pair in pairs]
        found = torch.zeros(len(texts))
        for places in _batches(texts):
            read = padded([texts[place] for place in places], left=True)
            said = self(base, read, queries[places], edits[places], near)
            found[places] = said.float().cpu()
        return found


def new_cross_encoder(shape: Shape, directions: int, seed: int) -> CrossEncoder:
    """Return one with seeded random weights; no global random state moves."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CrossEncoder(shape, directions)


def _batches(texts: Sequence[Text]) -> Iterator[list[int]]:
    batch: list[int] = []
    for place in sorted(range(len(texts)), key=lambda one: len(texts[one].codes)):
        tokens = len(texts[place].codes)
        if batch and (len(batch) == _ROWS or (len(batch) + 1) * tokens > _TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
