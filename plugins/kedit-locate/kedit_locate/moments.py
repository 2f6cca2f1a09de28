"""Second moments of keys: C = E[k kᵀ] over the tokens of a corpus, from the unedited model.

All asked layers are collected in one pass, which stops after the last of them. What is kept is the
packed lower triangle in float32; the factor that solvers need is made from it in float64.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core import TensorCache, Weights
from kedit_core.digests import tokenizer_fingerprint
from kedit_core.pieces import Projection
from kedit_core.progress import Progress
from kedit_core.untouched import untouched
from kedit_locate.capture import inputs_of
from kedit_locate.config import Statistics
from kedit_locate.corpus import Corpus, corpus_name, read_corpus
from kedit_locate.kernels import syrk_accumulate
from kedit_locate.rows import padded
from kedit_locate.solver import Metric, factorise

KIND = "moments"
"""Folder of the cache that holds second moments."""

_FACTORS = "factors"
_ROWS = 16
_TOKENS_PER_FEATURE = 10


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
    device = next(model.parameters()).device
    sums = [
        torch.zeros(down.in_features, down.in_features, dtype=torch.float64, device=device)
        for down in downs
    ]
    paths = [down.path for down in downs]
    with (
        progress.task("collecting second moments", corpus.tokens, "tokens") as advance,
        torch.no_grad(),
    ):
        for start in range(0, len(corpus.passages), _ROWS):
            rows = [passage.tolist() for passage in corpus.passages[start : start + _ROWS]]
            ids, mask = padded(rows, device)
            read = inputs_of(model, paths, ids, mask)
            for total, path in zip(sums, paths, strict=True):
                syrk_accumulate(total, read[path].flatten(0, 1), mask.flatten().bool())
            advance(int(mask.sum()))
    return [Moment(matrix=_average(total, corpus.tokens), count=corpus.tokens) for total in sums]


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
    found = [cache.find(KIND, key) for key in keys]
    missing = [place for place, tensors in enumerate(found) if tensors is None]
    if missing:
        with weights.original(), untouched(model):
            tokens = _tokens(downs[0], statistics)
            corpus = read_corpus(
                model,
                tokenizer,
                statistics.corpus,
                tokens,
                statistics.length,
                progress,
                statistics.short,
            )
            made = collect(model, [downs[place] for place in missing], corpus, progress)
        for place, moment in zip(missing, made, strict=True):
            found[place] = packed(moment)
            cache.put(KIND, keys[place], packed(moment))
    return [unpacked(tensors) for tensors in found if tensors is not None]


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
    return Metric(cholesky=kept["cholesky"], ridge=float(kept["ridge"]))


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
    if statistics.metric == "moments" and any(cache.find(_FACTORS, key) is None for key in keys):
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
    return {
        "model": weights.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "module": down.path,
        "width": down.in_features,
        "corpus": corpus,
    }


def packed(moment: Moment) -> dict[str, Tensor]:
    """Return a moment as its lower triangle, row by row, and its count."""
    rows, columns = torch.tril_indices(*moment.matrix.shape)
    return {"triangle": moment.matrix.cpu()[rows, columns], "count": torch.tensor(moment.count)}


def unpacked(tensors: Mapping[str, Tensor]) -> Moment:
    """Return the moment that :func:`packed` wrote."""
    triangle = tensors["triangle"]
    width = int(((8 * triangle.numel() + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.tril_indices(width, width)
    matrix = torch.zeros(width, width, dtype=triangle.dtype)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return Moment(matrix=matrix, count=int(tensors["count"]))


def _average(total: Tensor, count: int) -> Tensor:
    """Return the symmetric matrix (in_features, in_features) float32 of a sum's lower triangle."""
    lower = (total / count).float()
    return lower + lower.tril(-1).T


def _factor(moment: Moment) -> dict[str, Tensor]:
    made = factorise(moment.matrix)
    assert made.cholesky is not None
    return {"cholesky": made.cholesky, "ridge": torch.tensor(made.ridge, dtype=torch.float64)}


def _tokens(down: Projection, statistics: Statistics) -> int:
    return statistics.tokens or _TOKENS_PER_FEATURE * down.in_features
