"""A re-ranker reads a prompt together with each of the edits that are nearest to it, and decides.

The scope classifier finds candidates: the k edits with the largest scores. A cross-encoder then reads each
candidate's prompt and the query together. With l the largest of its logits,

    p = σ((l - threshold) / temperature)

is the probability that the prompt is in the scope of that candidate; from ½ on it is. Only prompts that come
near enough to any edit are read at all; the others are outside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import asdict, field, frozen
from torch import Tensor

from kedit_core.errors import DeltaError
from kedit_core.tokens import Ids
from kedit_memory.cross_encoders import CrossEncoder, Near, Pair, new_cross_encoder
from kedit_memory.decoders import Shape
from kedit_memory.encoders import Encoder, encoder_from
from kedit_memory.kept import OUTSIDE
from kedit_memory.scope import Match

_TILE = 8192
_PREFIX = "reranker."


@frozen(kw_only=True)
class Reranker:
    """A trained re-ranker.

    Attributes:
        reads: shape of the decoder that reads pairs, or what the text encoder is known by that does.
        directions: width of the classifier's map.
        near: how the classifier turned scores into logits when the re-ranker was trained.
        weights: of its cross-encoder, a state dict.
        candidates: edits that are read with a prompt, those with the largest scores.
        gate: score with some edit from which a prompt is read; None reads every prompt.
        threshold: logit from which a prompt is in scope.
        temperature: how fast the probability grows around it.
    """

    reads: Shape | Encoder
    directions: int
    near: Near
    weights: Mapping[str, Tensor] = field(eq=False, repr=False)
    candidates: int
    gate: float | None = None
    threshold: float = 0.0
    temperature: float = 1.0

    def cross_encoder(self, base: Any, tokenizer: Any) -> CrossEncoder:
        """Return the cross-encoder, in ``eval`` mode and without gradients.

        Args:
            base: lends its embeddings.
            tokenizer: the base's.

        Raises:
            KeditError: the text encoder is not on this machine, or is another one.
            RuntimeError: the weights are of another cross-encoder.
        """
        model = new_cross_encoder(base, tokenizer, self.reads, self.directions, self.near)
        model.load_state_dict(dict(self.weights))
        return model.requires_grad_(False).eval()

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors, for a memory or a file."""
        return {_PREFIX + name: one for name, one in self.weights.items()}

    def settings(self) -> dict[str, Any]:
        """Return the rest of it as JSON values."""
        plain = {
            name: one for name, one in asdict(self).items() if name not in ("weights", "reads")
        }
        kind = "shape" if isinstance(self.reads, Shape) else "encoder"
        return {**plain, kind: self.reads.as_json()}


def reranker_from(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None, where: str
) -> Reranker | None:
    """Return the re-ranker that a memory or a file holds, or None.

    Args:
        tensors: among them the re-ranker's.
        settings: as :meth:`Reranker.settings` gave them; None for no re-ranker.
        where: it is held, for the error.

    Raises:
        DeltaError: something of it is missing.
    """
    if settings is None:
        return None
    own = {
        name.removeprefix(_PREFIX): one.float()
        for name, one in tensors.items()
        if name.startswith(_PREFIX)
    }
    try:
        plain = {name: one for name, one in settings.items() if name not in ("shape", "encoder")}
        encoder = settings.get("encoder")
        reads = Shape(**settings["shape"]) if encoder is None else encoder_from(encoder)
        if "outer.weight" not in own:
            raise KeyError("outer.weight")
        return Reranker(**{**plain, "near": Near(**settings["near"])}, reads=reads, weights=own)
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(where, f"holds no whole re-ranker ({error})") from None


class Reranking:
    """A re-ranker over the edits of a memory."""

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        reranker: Reranker,
        memory: Tensor,
        prompts: Sequence[Ids],
    ) -> None:
        """Search among edits.

        Args:
            base: lends its embeddings.
            tokenizer: the base's.
            reranker: decides.
            memory: (edits, width) vectors of the edits.
            prompts: of the edits, as token ids of the base.

        Raises:
            DeltaError: the re-ranker's weights are not whole.
            KeditError: its text encoder is not on this machine, or is another one.
        """
        self._reranker, self._memory = reranker, memory
        self._prompts = list(prompts)
        try:
            self._model = reranker.cross_encoder(base, tokenizer)
        except RuntimeError as error:
            raise DeltaError("re-ranker", f"holds no whole cross-encoder ({error})") from None

    def match(self, queries: Tensor, prompts: Sequence[Ids], *, alone: bool) -> Match:
        """Return which edit each query meets.

        Args:
            queries: (queries, width) vectors of the queries.
            prompts: of the queries, as token ids of the base.
            alone: read each query by itself: what comes back is then the same bits whatever else is asked.
        """
        best, place = self.best(queries, prompts, alone=alone)
        reranker = self._reranker
        probability = torch.sigmoid((best - reranker.threshold) / reranker.temperature)
        # The logit decides, as in the calibration; a probability rounds at the edge.
        edit = torch.where(best >= reranker.threshold, place, OUTSIDE)
        return Match(probability=probability.to(queries.device), edit=edit.to(queries.device))

    def best(
        self, queries: Tensor, prompts: Sequence[Ids], *, alone: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the largest logit of each query and whose it is, (queries,) each.

        It is -inf where a query is not read, and inf for an edit's own prompt.

        Args:
            queries: (queries, width) vectors of the queries.
            prompts: of the queries.
            alone: read each query by itself.
        """
        held = self.candidates(queries, prompts)
        pairs = [
            [Pair(edit=self._prompts[place], query=query) for place in places]
            for query, places in zip(prompts, held, strict=True)
        ]
        step = 1 if alone else max(1, len(pairs))
        apart: list[Tensor] = []
        for start in range(0, len(pairs), step):
            apart += self._read(queries[start:], pairs[start : start + step], held[start:])
        each = zip(prompts, held, apart, strict=True)
        found = [self._decided(query, places, own) for query, places, own in each]
        best = torch.tensor([one for one, _ in found])
        return best, torch.tensor([place for _, place in found], dtype=torch.long)

    def _read(
        self, queries: Tensor, pairs: Sequence[Sequence[Pair]], held: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Return the logits of each query with its candidates, all read together."""
        counts = [len(one) for one in pairs]
        rows = torch.arange(len(pairs)).repeat_interleave(torch.tensor(counts))
        places = torch.tensor([place for one in held[: len(pairs)] for place in one])
        flat = [one for some in pairs for one in some]
        logits = self._model.logits(flat, queries[rows], self._memory[places.long()])
        return list(torch.split(logits, counts))

    def candidates(self, queries: Tensor, prompts: Sequence[Ids]) -> list[list[int]]:
        """Return the places of the edits that each query is read with, none where it is not read.

        Args:
            queries: (queries, width) vectors of the queries.
            prompts: of the queries.
        """
        if not self._prompts:
            return [[] for _ in prompts]
        best, places = top_k(queries, self._memory, self._reranker.candidates)
        gate = float("-inf") if self._reranker.gate is None else self._reranker.gate
        near = (best[:, 0] >= gate).tolist()
        return [row if read else [] for row, read in zip(places.tolist(), near, strict=True)]

    def _decided(self, query: Ids, places: Sequence[int], logits: Tensor) -> tuple[float, int]:
        """Return the largest logit and whose it is; an edit's own prompt is in its scope whatever is read."""
        if not places:
            return float("-inf"), OUTSIDE
        same = [place for place in places if self._prompts[place] == query]
        if same:
            return float("inf"), same[0]
        best = int(logits.argmax())
        return float(logits[best]), places[best]


def top_k(queries: Tensor, memory: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the largest products of each query with the memory and their places, tile by tile.

    No queries × memory matrix is ever there.

    Args:
        queries: (queries, width).
        memory: (edits, width), at least one.
        most: how many.

    Returns:
        products (queries, k) and places (queries, k), the largest first, k at most ``most``.
    """
    best = torch.empty(len(queries), 0, device=queries.device)
    places = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(memory), _TILE):
        products = queries @ memory[start : start + _TILE].T
        found, where = products.topk(min(most, products.shape[1]), dim=1)
        both, all_places = torch.cat([best, found], 1), torch.cat([places, where + start], 1)
        best, chosen = both.topk(min(most, both.shape[1]), dim=1)
        places = all_places.gather(1, chosen)
    return best, places
