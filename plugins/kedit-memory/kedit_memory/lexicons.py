"""Which words stand in a prompt, as a vector: names that no training met are told apart by it all the same.

Every word and every two words in a row have a vector of ±1/√width, whose signs their BLAKE2b digest spells
out. A prompt is the sum over the different ones in it, a subject a mean over its own, weighted by how rare
they are in the prompts of the training (their inverse document frequency). Two such vectors are nearly at
right angles, so that

    said(prompt) · named(subject)  ≈  share of the subject that stands in the prompt,

off by about √(words of the prompt / width).

Where capitals show it, a prompt also says with which words names begin and end in it, and a subject which its
own first and last word are: "Osaka" begins no name in "Naomi Osaka plays", so that less of it stands there. A
text all in small letters shows nothing: any word of it may begin or end a name.
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
_EDGE = 0.2  # of a subject, at the most, is where it begins, and as much where it ends
_OPENER = 0.03  # share of prompts from which on a word that opens a text is no part of a name
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
        every = [[*entries(text), *self._edges(text)] for text in texts]
        return self._sums([dict.fromkeys(found, 1.0) for found in every])

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
        if not found:
            return {}
        weights = [self._rarity(entry) for entry in found]
        if not sum(weights):
            weights = [1.0] * len(weights)
        rarest = self._rarest or 1.0
        edges = {one: _EDGE * self._rarity(one) / rarest for one in _ends(subject)}
        inside = (1 - sum(edges.values())) / sum(weights)
        words = {entry: inside * one for entry, one in zip(found, weights, strict=True)}
        return {**words, **edges}

    def _edges(self, text: str) -> list[str]:
        """Return where names begin and end in a text; what often opens texts may stand before one."""
        if text.islower():
            return [edge for word in _words(text) for edge in _edges_of([word])]
        names = names_in(text)
        behind = [one[1:] for one in names[:1] if len(one) > 1 and self._opens(one[0])]
        return [edge for name in (*names, *behind) for edge in _edges_of(name)]

    def _opens(self, word: str) -> bool:
        return self._rarity(word) < min(self._rarest, -math.log(_OPENER))

    @property
    def _rarest(self) -> float:
        """Return the rarity of what no training met."""
        return float(self.rarity.max())

    def _rarity(self, entry: str) -> float:
        return float(self.rarity[_bucket(entry)])

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
        edges = (edge for name in names_in(text) for edge in _edges_of(name))
        counts.update({_bucket(entry) for entry in (*entries(text), *edges)})
        number += 1
    rarity = [math.log((number + 1) / (counts[one] + 1)) for one in range(_BUCKETS)]
    return Lexicon(width=width, rarity=torch.tensor(rarity))


def entries(text: str) -> list[str]:
    """Return the last words of a text, in small letters, and every two in a row of them."""
    words = _words(text)
    return [*words, *(f"{one} {two}" for one, two in pairwise(words))]


def names_in(text: str) -> list[list[str]]:
    """Return the runs of capitalised words at the end of a text, in small letters, only spaces between them.

    A name ends where its line does.
    """
    names: list[list[str]] = []
    end = None  # of the capitalised word before
    for found in list(_WORDS.finditer(text))[-_LAST:]:
        if not _capitalised(found.group()):
            end = None
            continue
        between = text[end or 0 : found.start()]
        if end is None or not between.isspace() or "\n" in between:
            names.append([])
        names[-1].append(found.group().casefold())
        end = found.end()
    return names


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())[-_LAST:]


def _capitalised(word: str) -> bool:
    return word[0].isupper()


def _edges_of(name: Sequence[str]) -> tuple[str, str]:
    return f"^{name[0]}", f"{name[-1]}$"


def _ends(subject: str) -> list[str]:
    """Return where a subject begins and ends, as far as these words are capitalised."""
    words = _WORDS.findall(subject)
    begins = [f"^{one.casefold()}" for one in words[:1] if _capitalised(one)]
    return [*begins, *(f"{one.casefold()}$" for one in words[-1:] if _capitalised(one))]


def _bucket(entry: str) -> int:
    return int.from_bytes(blake2b(entry.encode(), digest_size=4).digest(), "big") % _BUCKETS
