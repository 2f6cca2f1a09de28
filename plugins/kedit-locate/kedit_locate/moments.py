"""Second moments of keys: C = E[k kᵀ] over the tokens of a corpus, from the unedited model.

All asked layers are collected in one pass, which stops after the last of them, shard by shard: see
``shards``. What is kept is the packed lower triangle in float32, of all text and of its first half; the
factor that solvers need is made from it in float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from kedit_core import TensorCache, Weights
from kedit_core.digests import tokenizer_fingerprint
from kedit_core.pieces import Projection
from kedit_core.progress import Progress
from kedit_core.untouched import untouched
from kedit_locate.config import Statistics
from kedit_locate.corpus import Corpus, corpus_name, read_corpus
from kedit_locate.shards import Shelf, Sum, Sums, cut, lower, sums_of
from kedit_locate.solver import Metric, factorise

KIND = "moments"
"""Folder of the cache that holds second moments."""

_FACTORS = "cholesky"


@frozen(kw_only=True)
class Moment:
    """The uncentred second moment of one projection's keys.

    Attributes:
        matrix: C (in_features, in_features) float32, symmetric.
        count: number of tokens.
    """

    matrix: Tensor = field(repr=False)
    count: int


def collect(
    model: nn.Module, downs: Sequence[Projection], corpus: Corpus, progress: Progress
) -> list[Moment]:
    """Return the second moment of each projection, all from one pass over the corpus.

    Args:
        model: unedited, in ``eval`` mode.
        downs: in the order of their layers.
        corpus: every token of it counts alike, pads do not.
        progress: told of tokens done.
    """
    return [_moment(sums.whole) for sums in _collected(model, downs, corpus, progress)]


def moments(
    model: nn.Module,
    tokenizer: Any,
    downs: Sequence[Projection],
    statistics: Statistics,
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> list[Moment]:
    """Return the second moment of each projection, from the cache or collected and kept.

    Args:
        model: may be edited; its original is what is looked at.
        tokenizer: the model's.
        downs: in the order of their layers.
        statistics: which text.
        weights: of the model.
        cache: where they are kept.
        progress: told how far it is.
    """
    keys = [moment_key(tokenizer, down, statistics, weights) for down in downs]
    kept = [cache.find(KIND, key) for key in keys]
    missing = [place for place, tensors in enumerate(kept) if tensors is None]
    if missing:
        some = [downs[place] for place in missing]
        made = _made(model, tokenizer, some, statistics, weights, cache, progress)
        for place, tensors in zip(missing, made, strict=True):
            kept[place] = tensors
    return [unpacked(tensors) for tensors in kept if tensors is not None]


def halves(
    model: nn.Module,
    tokenizer: Any,
    downs: Sequence[Projection],
    statistics: Statistics,
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Iterator[tuple[Moment, Moment | None]]:
    """Yield, for each projection, the second moment over all of its text and over the first half of it.

    What is not in the cache is collected. There is no half, but None, of a moment that was imported, that is
    older than halves are, or whose text is too short to be cut.

    Args:
        model: may be edited; its original is what is looked at.
        tokenizer: the model's.
        downs: in the order of their layers.
        statistics: which text.
        weights: of the model.
        cache: where they are kept.
        progress: told how far it is.
    """
    about = (statistics, weights, cache, progress)
    moments(model, tokenizer, downs, *about)
    for down in downs:
        (whole,) = moments(model, tokenizer, [down], *about)
        tensors = cache.find(KIND, moment_key(tokenizer, down, statistics, weights)) or {}
        parts = {"triangle": tensors.get("half"), "count": tensors.get("half_count")}
        found = {name: one for name, one in parts.items() if one is not None}
        yield whole, unpacked(found) if found else None


def metric_of(
    model: nn.Module,
    tokenizer: Any,
    down: Projection,
    statistics: Statistics,
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Metric:
    """Return the metric of one layer: the Cholesky factor of its second moment, kept in the cache."""
    if statistics.metric == "identity":
        return Metric(cholesky=None)

    def make() -> dict[str, Tensor]:
        (moment,) = moments(model, tokenizer, [down], statistics, weights, cache, progress)
        return _factor(moment)

    kept = cache.get(_FACTORS, moment_key(tokenizer, down, statistics, weights), make)
    return Metric(
        cholesky=kept["cholesky"],
        ridge=float(kept["ridge"]),
        condition=float(kept["condition"]),
    )


def metrics_of(
    model: nn.Module,
    tokenizer: Any,
    downs: Sequence[Projection],
    statistics: Statistics,
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> list[Metric]:
    """Return the metric of several layers; what is not in the cache is collected in one pass."""
    about = (statistics, weights, cache, progress)
    keys = [moment_key(tokenizer, down, statistics, weights) for down in downs]
    if statistics.metric != "identity" and any(cache.find(_FACTORS, key) is None for key in keys):
        moments(model, tokenizer, downs, *about)
    return [metric_of(model, tokenizer, down, *about) for down in downs]


def keep(moment: Moment, key: Mapping[str, Any], cache: TensorCache) -> Path:
    """Keep a moment that was made elsewhere, its factor in the place of an older one; return its file.

    Raises:
        ModelError: it cannot be factorised.
    """
    cache.put(_FACTORS, key, _factor(moment))
    return cache.put(KIND, key, packed(moment))


def moment_key(
    tokenizer: Any, down: Projection, statistics: Statistics, weights: Weights
) -> Mapping[str, Any]:
    """Return all that a second moment depends on, as the key of its cache file."""
    corpus = corpus_name(
        statistics.corpus, _tokens(down, statistics), statistics.length, statistics.short
    )
    weighed = {} if statistics.metric == "moments" else {"metric": statistics.metric}
    return {
        **weighed,
        "model": weights.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "module": down.path,
        "width": down.in_features,
        "corpus": corpus,
    }


def packed(moment: Moment) -> dict[str, Tensor]:
    """Return a moment as its lower triangle, row by row, and its count."""
    return {"triangle": lower(moment.matrix.cpu()), "count": torch.tensor(moment.count)}


def unpacked(tensors: Mapping[str, Tensor]) -> Moment:
    """Return the moment that :func:`packed` wrote."""
    triangle = tensors["triangle"]
    width = int(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.tril_indices(width, width)
    matrix = torch.zeros(width, width, dtype=triangle.dtype)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return Moment(matrix=matrix, count=int(tensors["count"]))


def _made(
    model: nn.Module,
    tokenizer: Any,
    downs: Sequence[Projection],
    statistics: Statistics,
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> list[dict[str, Tensor]]:
    """Collect and keep the second moments of some projections, and return what was kept."""
    keys = {down.path: moment_key(tokenizer, down, statistics, weights) for down in downs}
    shelf = Shelf(cache, keys)
    metrics = {}
    if statistics.metric == "leverage":
        plain = evolve(statistics, metric="moments")
        found = metrics_of(model, tokenizer, downs, plain, weights, cache, progress)
        metrics = {down.path: metric for down, metric in zip(downs, found, strict=True)}
    with weights.original(), untouched(model):
        corpus = read_corpus(
            model,
            tokenizer,
            statistics.corpus,
            _tokens(downs[0], statistics),
            statistics.length,
            progress,
            statistics.short,
            shelf.text,
        )
        sums_by_down = _collected(model, downs, corpus, progress, shelf, metrics)
    made = []
    for down, sums in zip(downs, sums_by_down, strict=True):
        tensors = packed(_moment(sums.whole))
        if sums.half is not None:
            half = packed(_moment(sums.half))
            tensors |= {"half": half["triangle"], "half_count": half["count"]}
        if cache.put(KIND, keys[down.path], tensors).exists():
            shelf.clear(down.path, len(cut(corpus)))
        made.append(tensors)
    return made


def _collected(
    model: nn.Module,
    downs: Sequence[Projection],
    corpus: Corpus,
    progress: Progress,
    shelf: Shelf | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> list[Sums]:
    weighed = "weighed " if metrics else ""
    with progress.task(f"collecting {weighed}second moments", corpus.tokens, "tokens") as advance:
        return sums_of(model, downs, cut(corpus), advance, shelf, metrics)


def _moment(total: Sum) -> Moment:
    average = (total.triangle / total.count).float()
    return unpacked({"triangle": average, "count": torch.tensor(total.count)})


def _factor(moment: Moment) -> dict[str, Tensor]:
    made = factorise(moment.matrix)
    assert made.cholesky is not None
    return {
        "cholesky": made.cholesky,
        "ridge": torch.tensor(made.ridge, dtype=torch.float64),
        "condition": torch.tensor(made.condition, dtype=torch.float64),
    }


def _tokens(down: Projection, statistics: Statistics) -> int:
    return statistics.tokens or statistics.per_feature * down.in_features
