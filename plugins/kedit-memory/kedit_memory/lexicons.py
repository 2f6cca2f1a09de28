"""Which words stand in a prompt, as a vector: names that no training met are told apart by it all the same.

Every word and every two words in a row have a vector of ±1/√width, whose signs their BLAKE2b digest spells
out. A prompt is the sum over the different ones in it, a subject a mean over its own, weighted by how rare
they are in the prompts of the training (their inverse document frequency). Two such vectors are nearly at
right angles, so that

    said(prompt) · named(subject)  ≈  share of the subject that stands in the prompt,

off by about √(words of the prompt / width).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn.functional import embedding_bag

from kedit_core.digests import digest

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
"""Runs of letters and digits; where words are not set apart, single characters."""

_LAST = 48
_BITS = 512  # of one digest
_BUCKETS = 4096


@frozen(kw_only=True)
class Lexicon:
    """What is known of words: how rare they are.

    Attributes:
        width: of the vectors; a power of four makes sums of them exact.
        rarity: (buckets,) float32 inverse document frequency; words are told apart by a digest.
    """

    width: int
    rarity: Tensor = field(eq=digest, repr=False)

    def said(self, texts: Sequence[str]) -> Tensor:
        """Return what stands in prompts, (texts, width) float32; of a long one its last 48 words count.

        Args:
            texts: prompts.
        """
        return self._sums([dict.fromkeys(entries(text), 1.0) for text in texts])

    def named(self, subjects: Sequence[str]) -> Tensor:
        """Return subjects, to be found in what prompts say, (subjects, width) float32.

        Args:
            subjects: or whole prompts, where an edit names no subject.
        """
        return self._sums([self._weights(subject) for subject in subjects])

    def settings(self) -> dict[str, Any]:
        """Return what is no tensor of it, as JSON values."""
        return {"width": self.width}

    def _weights(self, subject: str) -> dict[str, float]:
        found = dict.fromkeys(entries(subject))
        weights = [float(self.rarity[_bucket(entry)]) for entry in found]
        if not sum(weights):
            weights = [1.0] * len(weights)
        return {entry: one / sum(weights) for entry, one in zip(found, weights, strict=True)}

    def _sums(self, rows: Sequence[Mapping[str, float]]) -> Tensor:
        """Return for each row the weighted sum over its entries' vectors."""
        places: dict[str, int] = {}
        taken = [places.setdefault(entry, len(places)) for row in rows for entry in row]
        if not taken:
            return torch.zeros(len(rows), self.width)
        starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)[:-1]
        weights = torch.tensor([weight for row in rows for weight in row.values()])
        vectors, named = self._vectors(places), torch.tensor(taken)
        found: Tensor = embedding_bag(
            named, vectors, starts, mode="sum", per_sample_weights=weights
        )
        return found

    def _vectors(self, known: Iterable[str]) -> Tensor:
        """Return the vectors of entries, (entries, width) of ±1/√width."""
        blocks = range(math.ceil(self.width / _BITS))
        raw = b"".join(
            blake2b(f"{block} {entry}".encode(), digest_size=_BITS // 8).digest()
            for entry in known
            for block in blocks
        )
        octets = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        bits = (octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        signs = bits.reshape(-1, len(blocks) * _BITS)[:, : self.width].float() * 2 - 1
        return signs / math.sqrt(self.width)


def lexicon_of(texts: Iterable[str], width: int) -> Lexicon:
    """Return a lexicon that knows how rare words are in these prompts.

    Args:
        texts: of the training.
        width: of its vectors.
    """
    counts: Counter[int] = Counter()
    number = 0
    for text in texts:
        counts.update({_bucket(entry) for entry in entries(text)})
        number += 1
    rarity = [math.log((number + 1) / (counts[one] + 1)) for one in range(_BUCKETS)]
    return Lexicon(width=width, rarity=torch.tensor(rarity))


def entries(text: str) -> list[str]:
    """Return the last words of a text, in small letters, and every two in a row of them."""
    words = _WORDS.findall(text.casefold())[-_LAST:]
    return [*words, *(f"{one} {two}" for one, two in pairwise(words))]


def _bucket(entry: str) -> int:
    return int.from_bytes(blake2b(entry.encode(), digest_size=4).digest(), "big") % _BUCKETS
