"""The text that second moments are taken from."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.errors import KeditError
from kedit_core.progress import Progress
from kedit_core.tokens import beginning_of
from kedit_locate.sampling import sample, start_token

_ROWS = 64  # sampled side by side
_SEED = 0

Keep = Callable[[Mapping[str, Any], Callable[[], dict[str, Tensor]]], Mapping[str, Tensor]]
"""Returns the tensors of a key, kept or made."""


def _anew(_: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
    return make()


@frozen(kw_only=True)
class Corpus:
    """Passages as token ids.

    Attributes:
        name: what it is, for people and for the keys of caches.
        passages: ids (tokens,) of each; all tokens count.
        short: how many passages, the last ones, are of another kind: they begin as prompts do.
    """

    name: str
    passages: tuple[Tensor, ...] = field(repr=lambda passages: f"<{len(passages)} passages>")
    short: int = 0

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return sum(map(len, self.passages))

    @property
    def kinds(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the passages of each kind."""
        first = len(self.passages) - self.short
        return self.passages[:first], self.passages[first:]


def corpus_name(corpus: str | None, tokens: int, length: int, short: int | None = None) -> str:
    """Return what names a corpus: the content of its file, or that the model samples it itself.

    Raises:
        KeditError: the file cannot be read.
    """
    cut = f"{tokens} tokens in passages of {length}" + (f" and {short}" if short else "")
    if corpus is None:
        return f"self-sampled, seed {_SEED}, {cut}"
    digest = hashlib.sha256(_text(corpus).encode()).hexdigest()[:16]
    return f"file {digest}, {cut}"


def read_corpus(
    model: nn.Module,
    tokenizer: Any,
    corpus: str | None,
    tokens: int,
    length: int,
    progress: Progress,
    short: int | None = None,
    keep: Keep = _anew,
) -> Corpus:
    """Return ``tokens`` tokens of a text file, or of text that the model samples itself.

    Args:
        model: unedited, in ``eval`` mode.
        tokenizer: the model's.
        corpus: path of a UTF-8 text file, or None.
        tokens: how many; a shorter file gives what it has.
        length: tokens of one passage; where the tokenizer begins texts with a special token, so do
            passages.
        progress: told how far sampling is.
        short: of half the tokens, the length of passages that begin as prompts do; None for none.
        keep: keeps what was sampled, so that sampling goes on where it was interrupted.

    Raises:
        KeditError: the file cannot be read or is empty.
    """
    name = corpus_name(corpus, tokens, length, short)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", length)  # type: ignore[union-attr,operator]
    half = tokens if short is None else tokens - tokens // 2
    length, brief = min(length, longest), min(short or longest, longest)
    if corpus is not None:
        text = _text(corpus)
        passages = _cut(tokenizer, text, slice(half), length)
        more = _cut(tokenizer, text, slice(half, tokens), brief)
    else:
        passages = _sampled(model, tokenizer, half, length, progress, keep, _SEED)
        # The model has to start from something; where prompts do not, neither do these.
        first = 0 if beginning_of(tokenizer) else 1
        more = _sampled(model, tokenizer, tokens - half, brief, progress, keep, _SEED + 1)
        more = tuple(passage[first:] for passage in more)
    if not passages:
        raise KeditError(f"corpus {corpus} holds no text")
    return Corpus(name=name, passages=passages + more, short=len(more))


def _text(corpus: str) -> str:
    try:
        return Path(corpus).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeditError(f"corpus {corpus} cannot be read ({reason})") from None


def _sampled(
    model: nn.Module,
    tokenizer: Any,
    tokens: int,
    length: int,
    progress: Progress,
    keep: Keep,
    seed: int,
) -> tuple[Tensor, ...]:
    if not tokens:
        return ()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    passages: list[Tensor] = []

    def make(rows: int) -> dict[str, Tensor]:
        start = torch.full((rows, 1), start_token(tokenizer), device=device)
        ids = sample(model, start, length - 1, generator)  # (rows, length)
        return {"ids": ids.cpu(), "state": generator.get_state()}

    with progress.task("sampling text for statistics", tokens, "tokens") as advance:
        while (missing := tokens - len(passages) * length) > 0:
            rows = min(_ROWS, -(-missing // length))
            key = {"seed": seed, "length": length, "after": len(passages), "rows": rows}
            kept = keep(key, partial(make, rows))
            generator.set_state(kept["state"])
            passages += kept["ids"]
            advance(rows * length)
    return tuple(passages)


def _cut(tokenizer: Any, text: str, part: slice, length: int) -> tuple[Tensor, ...]:
    # Long texts make transformers warn about the context length; passages keep to it.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][part]
    first = beginning_of(tokenizer)
    step = length - len(first)
    return tuple(torch.tensor([*first, *ids[at : at + step]]) for at in range(0, len(ids), step))
