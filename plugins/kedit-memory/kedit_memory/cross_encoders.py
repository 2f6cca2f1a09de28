"""A cross-encoder reads an edit's prompt and a query together and says whether both ask the same.

Two kinds of reader are there: a small decoder on the embeddings of the base (``decoders``), which is trained,
and a text encoder of any folder or hub id (``encoders``), frozen, with its own tokenizer. The decoder reads

    edit prompt | query

where each token's kind says which of the two it is of and whether the other one holds it too, so that names
which nobody trained on are known to be the same. With h the last token's state (of an encoder
the mean and the first token's), s the score that the scope classifier gives query and edit,
l = (s - threshold) / temperature the same as a logit, and q and e the directions of both that its map gives, it
says

    logit = 4 tanh(l / 4) + MLP(h, q ⊙ e)

where the last layer of the MLP is zero at the start: training begins at what the classifier says.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.tokens import Ids
from kedit_memory.decoders import PLAIN, Decoder, Shape, Text, padded
from kedit_memory.encoders import Encoder, TextEncoder, opened
from kedit_memory.readers import texts_of

_BETWEEN = -1
_EDIT, _EDIT_SHARED, _QUERY_SHARED = 1, 2, 3
_ROWS, _TOKENS = 256, 8192
_INNER, _BOUND = 64, 4.0


@frozen(kw_only=True)
class Near:
    """How a scope classifier turns a score into a logit.

    Attributes:
        threshold: score of logit 0.
        temperature: scores of a logit's unit.
    """

    threshold: float
    temperature: float

    def logit(self, scores: Tensor) -> Tensor:
        """Return the logits of scores."""
        return (scores - self.threshold) / self.temperature


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


class DecoderPairs(nn.Module):
    """A small decoder reads pairs; it is trained."""

    def __init__(self, base: Any, shape: Shape) -> None:
        """Make one with random weights beside ``base``, which lends its embeddings."""
        super().__init__()
        self._base = (base,)  # in a tuple it is none of the module's own weights
        self.decoder = Decoder(shape, marks=1, kinds=3)
        self.width = shape.width

    def forward(self, pairs: Sequence[Pair]) -> Tensor:
        """Return the states (pairs, width) of the last tokens."""
        text = padded([pair.text() for pair in pairs], left=True)
        states: Tensor = self.decoder(self._base[0], text)[:, -1]
        return states


class EncoderPairs(nn.Module):
    """A frozen text encoder reads pairs."""

    def __init__(self, encoder: TextEncoder, tokenizer: Any) -> None:
        """Read with ``encoder`` what ``tokenizer``, the base's, decodes."""
        super().__init__()
        self._encoder, self._tokenizer = encoder, tokenizer
        self.width = 2 * encoder.width

    def forward(self, pairs: Sequence[Pair]) -> Tensor:
        """Return the mean over the tokens and the first token's state side by side, (pairs, 2 · width)."""
        edits = texts_of(self._tokenizer, [pair.edit for pair in pairs])
        queries = texts_of(self._tokenizer, [pair.query for pair in pairs])
        return self._encoder.pair_states(edits, queries)


class CrossEncoder(nn.Module):
    """A reader of pairs with a head of one logit."""

    def __init__(self, pairs: DecoderPairs | EncoderPairs, directions: int, near: Near) -> None:
        """Make one with random weights.

        Args:
            pairs: reads.
            directions: width of the classifier's map, whose part comes first in its vectors.
            near: turns scores into logits.
        """
        super().__init__()
        self.pairs, self._near, self._directions = pairs, near, directions
        trained = isinstance(pairs, DecoderPairs)  # and ends with a norm of its own
        self.norm = nn.Identity() if trained else nn.LayerNorm(pairs.width)
        self.inner = nn.Linear(pairs.width + directions, _INNER)
        self.outer = nn.Linear(_INNER, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, pairs: Sequence[Pair], queries: Tensor, edits: Tensor) -> Tensor:
        """Return logits (pairs,) that both ask the same.

        Args:
            pairs: to read.
            queries: (pairs, width) the classifier's vectors of the queries.
            edits: (pairs, width) those of the edits.
        """
        device = self.outer.weight.device
        read = self.norm(self.pairs(pairs).to(device))  # (pairs, width)
        both = queries.to(read) * edits.to(read)  # (pairs, width)
        start = self._near.logit(both.sum(1)) / _BOUND
        mapped = both[:, : self._directions]
        scaled = mapped * self._directions**0.5  # components of the size of the states'
        inner = nn.functional.gelu(self.inner(torch.cat([read, scaled], 1)))
        logits: Tensor = _BOUND * torch.tanh(start) + self.outer(inner)[:, 0]
        return logits

    @torch.no_grad()
    def logits(self, pairs: Sequence[Pair], queries: Tensor, edits: Tensor) -> Tensor:
        """Return logits of pairs, (pairs,) float32 on the CPU, those of like length read together.

        Args:
            pairs: to read.
            queries: (pairs, width) the classifier's vectors of the queries.
            edits: (pairs, width) those of the edits.
        """
        found = torch.zeros(len(pairs))
        for places in _batches(pairs):
            some = [pairs[place] for place in places]
            found[places] = self(some, queries[places], edits[places]).float().cpu()
        return found


def new_cross_encoder(
    base: Any,
    tokenizer: Any,
    reads: Shape | Encoder,
    directions: int,
    near: Near,
    seed: int = 0,
) -> CrossEncoder:
    """Return one with seeded random weights on the base's device; no global random state moves.

    Args:
        base: lends its embeddings to a decoder.
        tokenizer: the base's; tells a text encoder what token ids say.
        reads: shape of a decoder, or what a text encoder is known by.
        directions: width of the classifier's map, whose part comes first in its vectors.
        near: turns scores into logits.
        seed: of the weights.

    Raises:
        KeditError: the text encoder is not on this machine, or is another one.
    """
    device = base.get_input_embeddings().weight.device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairs: DecoderPairs | EncoderPairs = (
            DecoderPairs(base, reads)
            if isinstance(reads, Shape)
            else EncoderPairs(opened(reads, device), tokenizer)
        )
        return CrossEncoder(pairs, directions, near).to(device)


def _batches(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    lengths = [len(pair.edit) + len(pair.query) for pair in pairs]
    batch: list[int] = []
    for place in sorted(range(len(pairs)), key=lambda one: lengths[one]):
        if batch and (len(batch) == _ROWS or (len(batch) + 1) * lengths[place] > _TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
