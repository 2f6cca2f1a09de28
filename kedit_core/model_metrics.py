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
from kedit_core.tokens import encode

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
        ``text``, a
    file of held-out text, and takes ``window`` (512 tokens).
    """
    if "fluency" in metrics:
        options = metrics["fluency"]
        for request in batch.requests:
            text = _written(model, tokenizer, request.prompt, batch.chat, options)
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
    (arXiv:2202.05262); published
    tables show 100 times this.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


@torch.no_grad()
def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    chat: bool,
    options: Mapping[str, Any],
) -> str:
    """Return what the model writes after a prompt, sampled with a seed from its five likeliest tokens."""
    ids = torch.tensor(
        [encode(tokenizer, [prompt], chat)[0].ids], device=model.device
    )  # (1, tokens)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(options.get("seed", 0)))
        written = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=_TOP_K,
            max_length=max(int(options.get("tokens", _FLUENCY_TOKENS)), ids.shape[1] + 1),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


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
        text = Path(options["text"]).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "metrics", [f"perplexity: {options['text']} cannot be read ({error.strerror})"]
        ) from None
    # Long texts make transformers warn about the context length; the windows keep to it.
    ids = torch.tensor(
        tokenizer(text, verbose=False)["input_ids"], device=model.device
    )  # (tokens,)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", _WINDOW)
    windows = torch.split(ids, min(int(options.get("window", _WINDOW)), longest))
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
        [("norm", path) for path in touched], lambda of, keys: [norm(of, path) for _, path in keys]
    )
    growth = [norm(model, path) / max(before["norm", path], 1e-30) - 1 for path in touched]
    return sum(growth) / len(growth)
