"""Metrics of what a model writes and of the model as a whole: fluency, perplexity, drift."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.deltas import Delta
from kedit_core.errors import ConfigError
from kedit_core.reports import Score
from kedit_core.requests import EditBatch
from kedit_core.scoring import continue_sampling, ends_of_text, up_to
from kedit_core.tokens import Ids, context_of, encode

MODEL_METRICS = ("fluency", "perplexity", "drift")

_FLUENCY_TOKENS = 100  # prompt included
_TOP_K = 5
_WINDOW = 512


def judge_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    deltas: Sequence[Delta],
    baseline: Baseline,
    metrics: Mapping[str, Mapping[str, Any]],
) -> Iterator[Score]:
    """Yield the scores of ``fluency``, ``perplexity`` and ``drift`` that were asked for.

    Options: ``fluency`` takes ``tokens`` (100, prompt included) and ``seed``; ``perplexity`` needs
    ``text``, a file of held-out text, and takes ``window`` (512 tokens).
    """
    if "fluency" in metrics and batch.requests:
        prompts = [request.prompt for request in batch.requests]
        texts = written(model, tokenizer, prompts, batch.chat, metrics["fluency"])
        for request, text in zip(batch.requests, texts, strict=True):
            yield Score(metric="fluency", request=request.id, value=ngram_entropy(text))
    if "perplexity" in metrics:
        yield Score(metric="perplexity", value=_perplexity(model, tokenizer, metrics["perplexity"]))
    if "drift" in metrics:
        touched = sorted({part.weight for delta in deltas for part in delta.weights()})
        if touched:
            yield Score(metric="drift", value=_drift(model, touched, baseline))


def ngram_entropy(text: str) -> float:
    """Return the weighted mean of the 2-gram and 3-gram entropies of a text, in bits.

    ½ (⅔ H₂ + ⁴⁄₃ H₃) over the frequencies of word n-grams, as ROME's code weighs them
    (arXiv:2202.05262); published tables show 100 times this.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return sum(count / total * math.log2(total / count) for count in counts.values())


def written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    chat: bool,
    options: Mapping[str, Any],
) -> list[str]:
    """Return what the model writes after each prompt, prompt included: seeded, from its five likeliest tokens.

    The model's own generation settings (temperature, penalties, beams) stay out of it.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
        prompts: as a user would type them.
        chat: render each through the chat template.
        options: ``tokens`` (100, prompt included) and ``seed`` (0).
    """
    read = [one.ids for one in encode(tokenizer, prompts, chat)]
    total = min(int(options.get("tokens", _FLUENCY_TOKENS)), context_of(model))
    seed = int(options.get("seed", 0))
    said: dict[Ids, Ids] = {}
    for length in {len(ids) for ids in read}:  # apart: none may grow past the model's context
        own = [ids for ids in read if len(ids) == length]
        more = max(total - length, 1)
        said |= zip(own, continue_sampling(model, own, more, top=_TOP_K, seed=seed), strict=True)
    ends = ends_of_text(model, tokenizer)
    texts = ([*ids, *up_to(ends, said[ids])] for ids in read)
    return [str(tokenizer.decode(text, skip_special_tokens=True)) for text in texts]


@torch.no_grad()
def _perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> float:
    """Return exp of the mean NLL a token on a text, read in windows that do not overlap."""
    if "text" not in options:
        raise ConfigError(
            "metrics", ["perplexity needs a held-out text; pass perplexity: {text: FILE}"]
        )
    try:
        text = Path(options["text"]).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            "metrics", [f"perplexity: {options['text']} cannot be read ({error.strerror})"]
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("metrics", [f"perplexity: {options['text']} is not UTF-8 text"]) from None
    # Long texts make transformers warn about the context length; the windows keep to it.
    ids = torch.tensor(
        tokenizer(text, verbose=False)["input_ids"], device=model.device
    )  # (tokens,)
    windows = torch.split(ids, min(int(options.get("window", _WINDOW)), context_of(model)))
    losses = [_token_losses(model, window) for window in windows if len(window) > 1]
    if not losses:
        raise ConfigError("metrics", [f"perplexity: {options['text']} holds fewer than two tokens"])
    return float(torch.cat(losses).mean().exp())


def _token_losses(model: PreTrainedModel, window: Tensor) -> Tensor:
    """Return the NLL of every token of a window but the first, (tokens - 1,) float64."""
    logits = model(input_ids=window[None], attention_mask=torch.ones_like(window[None])).logits[
        0, :-1
    ]
    return torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="none")


def _drift(model: PreTrainedModel, touched: Sequence[str], baseline: Baseline) -> float:
    """Return the mean over touched weights of (‖W‖ - ‖W⁰‖) / ‖W⁰‖ (Frobenius)."""

    def norm(of: torch.nn.Module, path: str) -> float:
        return float(of.get_parameter(path).detach().double().norm())

    before = baseline.many(
        [(__name__, path) for path in touched],
        lambda of, keys: [norm(of, path) for _, path in keys],
    )
    growth = [norm(model, path) / max(before[__name__, path], 1e-30) - 1 for path in touched]
    return sum(growth) / len(growth)
