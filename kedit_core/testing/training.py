"""Two small models that know forty facts: a Conv1D one and a Linear one, trained in seconds and kept.

A method that edits real models fails on random ones: there is no fact to change and no neighbour to
spare. So the contract trains its own, from nothing and offline. Every sentence is one fact in one
of its wordings; rows hold several in random order, so that a fact is known wherever it stands.

Left alone, a model this small looks a fact up anywhere, even straight from the embedding of its
subject. In large models the MLPs of earlier layers do it, at the subject's last token (Meng et al.,
2022, arXiv:2202.05262, section 2), and methods count on that. So while these models learn, the
ways around the first MLP are closed at random tokens: it is the only one that is always open.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kedit_core.cache import TensorCache
from kedit_core.digests import tokenizer_fingerprint
from kedit_core.errors import ModelError
from kedit_core.layout import layout_of
from kedit_core.scoring import score_answers
from kedit_core.testing.facts import facts
from kedit_core.testing.tiny import byte_level_tokenizer

FAMILIES = ("gpt2", "llama")
"""Whose matrices are Conv1D modules, and whose are Linear ones."""

_VOCABULARY, _WIDTH, _CONTEXT = 640, 64, 128
_ROWS, _LENGTH, _STEPS, _RATE = 32, 32, 280, 5e-3
_WARM = 20  # steps until the rate is reached; over the last third it falls to nothing
_SEEDS = 3
_CLOSED_ATTENTION, _CLOSED_STREAM = 0.7, 0.5  # shares of tokens


def trained_model(
    family: str, dtype: torch.dtype = torch.float32, cache_folder: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a fresh copy of a model that knows all :func:`facts`, and its tokenizer.

    It has 2 blocks of width 64. The first call trains it, for a few seconds on one thread; its weights
    are kept in ``cache_folder`` and checked when they are read: damaged ones are trained again.

    Args:
        family: ``gpt2`` (Conv1D) or ``llama`` (Linear).
        dtype: to cast the weights to.
        cache_folder: where trained weights are kept; None takes kedit's own cache.

    Raises:
        ModelError: there is no such family, or training did not teach it the facts.
    """
    if family not in FAMILIES:
        raise ModelError(family, f"the trained models are {' and '.join(FAMILIES)}")
    tokenizer = _tokenizer(family)
    key = {"family": family, "recipe": _recipe(), "tokens": tokenizer_fingerprint(tokenizer)}
    with warnings.catch_warnings():
        # A damaged file is trained anew; in a suite that makes errors of warnings it would be fatal.
        warnings.simplefilter("ignore")
        kept = TensorCache(cache_folder).get(
            "contract-models", key, lambda: _learned(family, tokenizer)
        )
    with torch.random.fork_rng():  # no model's making shows in the caller's random numbers
        model = _untrained(family)
    model.load_state_dict(kept)
    model.requires_grad_(False)
    return torch.nn.Module.eval(torch.nn.Module.to(model, dtype)), tokenizer


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread inside the block: on models this small more of them only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sentences() -> tuple[str, ...]:
    return tuple(f"{prompt} {fact.answer}." for fact in facts() for prompt in fact.prompts)


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(
        bos=family == "llama", sentences=_sentences(), vocabulary=_VOCABULARY
    )


def _recipe() -> str:
    """Return a name of all that decides the trained weights: the texts and this very module."""
    made_of = "\n".join([*_sentences(), Path(__file__).read_text(encoding="utf-8")])
    return hashlib.sha256(made_of.encode()).hexdigest()


def _untrained(family: str) -> PreTrainedModel:
    """Return a model of this family with torch's own random weights."""
    shape: dict[str, Any] = {"vocab_size": _VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        shape |= {"n_embd": _WIDTH, "n_layer": 2, "n_head": 4, "n_positions": _CONTEXT}
        shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**shape))
    shape |= {"hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 3 * _WIDTH}
    return LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=_CONTEXT))


def _learned(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Return the weights of a model that was trained from nothing and knows every fact.

    Raises:
        ModelError: no seed taught it all of them.
    """
    missed = 0
    with torch.random.fork_rng(), torch.enable_grad(), one_thread():
        # The first seed does; but another processor rounds otherwise, and may be less lucky with it.
        for seed in range(_SEEDS):
            torch.manual_seed(seed)
            model = _untrained(family)
            with _facts_in_the_first_mlp(model):
                _train(model, tokenizer)
            missed = _missed(torch.nn.Module.eval(model), tokenizer)
            if not missed:
                return dict(model.state_dict())
    raise ModelError(
        f"the {family} of the contract", f"did not learn {missed} wordings of its facts"
    )


def _missed(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return after how many wordings a model says something else than the answer."""
    pairs = []
    for fact in facts():
        answer = tokenizer(f" {fact.answer}", add_special_tokens=False)["input_ids"]
        pairs += [(tuple(tokenizer(prompt)["input_ids"]), tuple(answer)) for prompt in fact.prompts]
    return sum(not answered.exact for answered in score_answers(model, pairs))


@contextmanager
def _facts_in_the_first_mlp(model: PreTrainedModel) -> Iterator[None]:
    """Close the ways around the first MLP at random tokens inside the block."""
    first = layout_of(model).layers[0]
    looked_up: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        looked_up[:] = [output]

    def close_attention(_: nn.Module, __: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        return (output[0] * _open(output[0], _CLOSED_ATTENTION), *output[1:])

    def close_stream(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        around = output - looked_up[0]  # (rows, length, width)
        return around * _open(around, _CLOSED_STREAM) + looked_up[0]

    hooks = [
        model.get_submodule(str(first.attention)).register_forward_hook(close_attention),
        model.get_submodule(str(first.mlp)).register_forward_hook(keep),
        model.get_submodule(first.path).register_forward_hook(close_stream),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _open(stream: Tensor, closed: float) -> Tensor:
    """Return 0 for a share ``closed`` of all tokens and 1 for the others, (rows, length, 1)."""
    return (torch.rand(stream.shape[:2]) >= closed).to(stream)[..., None]


def _train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Teach a model all sentences: Adam, warmed up and let out again."""
    model.set_attn_implementation("eager")  # faster on short rows on a CPU
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE, betas=(0.9, 0.98))
    for step, ids in enumerate(_batches(tokenizer)):
        rate = min(1.0, (step + 1) / _WARM, (_STEPS - step) / (_STEPS / 3))
        optimizer.param_groups[0]["lr"] = _RATE * rate
        logits = model(input_ids=ids, use_cache=False).logits  # (rows, length, vocabulary)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    """Yield token ids (rows, length): sentences in random order, cut at the end of the row."""
    opening = [tokenizer(text)["input_ids"] for text in _sentences()]
    # Where no special token is always there, half of the rows have one all the same.
    bare = [ids if ids[0] else ids[1:] for ids in opening]
    following = [
        tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in _sentences()
    ]
    always = opening[0][0] == 0
    for _ in range(_STEPS):
        rows = []
        for _ in range(_ROWS):
            chosen = torch.randint(len(opening), (_LENGTH // 4,)).tolist()
            begin = [0] if always or float(torch.rand(())) < 0.5 else []
            row = begin + bare[chosen[0]]
            for place in chosen[1:]:
                row = row + following[place]
            rows.append(row[:_LENGTH])
        yield torch.tensor(rows)
