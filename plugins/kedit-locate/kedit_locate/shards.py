"""Sums of k kᵀ over a corpus, taken a shard at a time: a pass that is interrupted goes on where it was.

Each shard is summed from zero, in float64, and finished shards are added up in their order. So the sum is the
same bit for bit whether a shard was just made, was kept by a pass that did not end, or was damaged
and made anew. Every shard holds its share of each kind of passage, so that the first half of
them is a smaller corpus of the same text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core import TensorCache
from kedit_core.pieces import Projection
from kedit_core.progress import Advance
from kedit_locate.capture import inputs_of
from kedit_locate.corpus import Corpus
from kedit_locate.kernels import syrk_accumulate
from kedit_locate.rows import padded
from kedit_locate.solver import Metric

SHARDS = "shards"
"""Folder of the cache that holds what an unfinished pass has done."""

_TEXT = "text"
_ROWS = 16
_TOKENS = 1 << 17  # of a shard, about
_MOST = 32


@frozen(kw_only=True)
class Sum:
    """Σ k kᵀ over some tokens.

    Attributes:
        triangle: its lower triangle, row by row, (in_features · (in_features + 1) / 2,) float64, on the
            CPU.
        count: number of tokens.
    """

    triangle: Tensor = field(repr=False)
    count: int

    def plus(self, other: "Sum") -> "Sum":
        """Return the sum over the tokens of both."""
        return Sum(triangle=self.triangle + other.triangle, count=self.count + other.count)


@frozen(kw_only=True)
class Sums:
    """What a pass found for one projection.

    Attributes:
        whole: over all shards.
        half: over the first half of them; None where there is one shard only.
    """

    whole: Sum
    half: Sum | None


class Shelf:
    """Keeps what a pass has done until it has ended: the text that was sampled, and finished shards."""

    def __init__(self, cache: TensorCache, keys: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep it in ``cache``; ``keys`` say, by the path of a projection, what its sums depend on."""
        # Not at hand in memory: there it would push out what is asked for more than once.
        self._cache = TensorCache(cache.folder, memory=0)
        self._keys = keys
        self._works = True  # one warning about a folder that cannot be written is enough

    def find(self, path: str, shard: tuple[int, int]) -> Sum | None:
        """Return the sum of one projection over one shard, None when it is not there or damaged."""
        kept = self._cache.find(SHARDS, self._key(path, shard))
        return None if kept is None else Sum(triangle=kept["triangle"], count=int(kept["count"]))

    def put(self, path: str, shard: tuple[int, int], made: Sum) -> None:
        """Keep the sum of one projection over one shard, the first of so many being (0, so many)."""
        tensors = {"triangle": made.triangle, "count": torch.tensor(made.count)}
        self._put(SHARDS, self._key(path, shard), tensors)

    def text(
        self, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Return the text of a key, kept or made."""
        own = next(iter(self._keys.values()))
        key = {"model": own["model"], "tokenizer": own["tokenizer"], **key}
        kept = self._cache.find(_TEXT, key)
        if kept is None:
            kept = make()
            self._put(_TEXT, key, kept)
        return kept

    def clear(self, path: str, shards: int) -> None:
        """Throw away the shards of one projection."""
        for number in range(shards):
            key = self._key(path, (number, shards))
            self._cache.path(SHARDS, key).unlink(missing_ok=True)

    def _put(self, kind: str, key: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        if self._works:
            self._works = self._cache.put(kind, key, tensors).exists()

    def _key(self, path: str, shard: tuple[int, int]) -> Mapping[str, Any]:
        return {**self._keys[path], "shard": list(shard)}


def cut(corpus: Corpus, tokens: int = _TOKENS) -> list[list[Tensor]]:
    """Return the passages of every shard: one, or an even number of them.

    Args:
        corpus: to cut.
        tokens: of a shard, about.
    """
    wanted = min(max(corpus.tokens // tokens, 2), _MOST, len(corpus.passages) // _ROWS)
    shards = max(wanted // 2 * 2, 1)
    found: list[list[Tensor]] = [[] for _ in range(shards)]
    for kind in corpus.kinds:
        bounds = [len(kind) * number // shards for number in range(shards + 1)]
        for shard, (start, end) in zip(found, pairwise(bounds), strict=True):
            shard.extend(kind[start:end])
    return found


@torch.no_grad()
def sums_of(
    model: nn.Module,
    downs: Sequence[Projection],
    shards: Sequence[Sequence[Tensor]],
    advance: Advance,
    shelf: Shelf | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> list[Sums]:
    """Return the sums of each projection, all from one pass; shards that are kept are not read again.

    Args:
        model: unedited, in ``eval`` mode.
        downs: in the order of their layers.
        shards: passages (tokens,) of each.
        advance: told of tokens done.
        shelf: where finished shards are kept; None keeps none.
        metrics: by path, of projections whose keys count by their leverage; others' count once.
    """
    metrics = metrics or {}
    half, whole = dict[str, Sum](), dict[str, Sum]()
    for number, passages in enumerate(shards):
        place = (number, len(shards))
        found = {down.path: shelf.find(down.path, place) if shelf else None for down in downs}
        missing = [down for down in downs if found[down.path] is None]
        made = _summed(model, missing, passages, advance, metrics) if missing else {}
        if not missing:
            advance(sum(map(len, passages)))
        for path, one in made.items():
            if shelf:
                shelf.put(path, place, one)
        for path, one in ((path, one) for path, one in (found | made).items() if one is not None):
            whole[path] = whole[path].plus(one) if path in whole else one
        half = dict(whole) if 2 * (number + 1) == len(shards) else half
    return [Sums(whole=whole[down.path], half=half.get(down.path)) for down in downs]


def _summed(
    model: nn.Module,
    downs: Sequence[Projection],
    passages: Sequence[Tensor],
    advance: Advance,
    metrics: Mapping[str, Metric],
) -> dict[str, Sum]:
    """Return the sum of each projection over some passages, by path."""
    device = next(model.parameters()).device
    totals = {
        down.path: torch.zeros(
            down.in_features, down.in_features, dtype=torch.float64, device=device
        )
        for down in downs
    }
    for ids, mask in _batches(passages, device):
        read = inputs_of(model, list(totals), ids, mask)
        for path, total in totals.items():
            keys = read[path].flatten(0, 1)  # (rows · tokens, in_features)
            if path in metrics:
                keys = _weighed(keys, metrics[path])
            syrk_accumulate(total, keys, mask.flatten().bool())
        advance(int(mask.sum()))
    count = sum(map(len, passages))
    return {path: Sum(triangle=lower(total.cpu()), count=count) for path, total in totals.items()}


def _weighed(keys: Tensor, metric: Metric) -> Tensor:
    """Return keys (keys, in_features) such that k kᵀ counts kᵀC⁻¹k / in_features times, once on average."""
    exact = keys.to(torch.promote_types(keys.dtype, torch.float32))
    shares = metric.leverage(keys) / keys.shape[1]  # (keys,)
    return exact * shares.sqrt().to(exact)[:, None]


def _batches(passages: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(passages), _ROWS):
        yield padded([passage.tolist() for passage in passages[start : start + _ROWS]], device)


def lower(matrix: Tensor) -> Tensor:
    """Return the lower triangle of a matrix (width, width), row by row."""
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix[rows, columns]
