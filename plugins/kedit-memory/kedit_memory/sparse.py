"""Edits found by the tokens that a prompt shares with theirs: Okapi BM25 (Robertson and Zaragoza, 2009).

Directions that were trained on some wordings lose a prompt that asks in others; the name of its subject is
still there. With n edits, of which n_t hold the token t,

    score(query, edit) = Σ over t in both of  log(1 + (n - n_t + ½) / (n_t + ½)) · b(edit)

where b = (k + 1) / (1 + k (1 - β + β · length / mean length)); a token counts once, so no other part of BM25 is
left.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kedit_core.tokens import Ids

_K, _BETA = 1.2, 0.75
_COMMON = 0.5  # of the edits; a token that more of them hold finds none


class SparseIndex:
    """Which edits hold which tokens."""

    def __init__(self, prompts: Sequence[Ids]) -> None:
        """Index the token ids of the edits' prompts."""
        self._edits = len(prompts)
        places: dict[int, list[int]] = {}
        for place, ids in enumerate(prompts):
            for token in dict.fromkeys(ids):
                places.setdefault(token, []).append(place)
        lengths = torch.tensor([float(len(set(ids))) for ids in prompts])
        mean = lengths.mean().clamp(min=1.0) if self._edits else torch.tensor(1.0)
        weight = (_K + 1) / (1 + _K * (1 - _BETA + _BETA * lengths / mean))  # (edits,)
        self._places: dict[int, Tensor] = {}
        self._scores: dict[int, Tensor] = {}
        for token, found in places.items():
            if len(found) > max(1.0, _COMMON * self._edits):
                continue
            own = torch.tensor(found)
            rare = torch.tensor((self._edits - len(found) + 0.5) / (len(found) + 0.5)).log1p()
            self._places[token], self._scores[token] = own, rare * weight[own]
        found_by_own = torch.zeros(self._edits)
        for token, where in self._places.items():
            found_by_own[where] += self._scores[token]
        self._own = found_by_own.clamp(min=1e-6)  # (edits,)

    def scores(self, query: Ids) -> Tensor:
        """Return the BM25 score of every edit for the token ids of a query, (edits,) float32."""
        found = torch.zeros(self._edits)
        for token in dict.fromkeys(query):
            places = self._places.get(token)
            if places is not None:
                found[places] += self._scores[token]
        return found

    def share(self, query: Ids, edit: int) -> float:
        """Return how much of what an edit scores for its own prompt it scores for a query."""
        return float(self.scores(query)[edit] / self._own[edit])
