"""Who reads prompts for a scope classifier: the base model itself, on the way, or a text encoder beside it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kedit_core.tokens import Ids
from kedit_memory.encoders import Encoder, TextEncoder, opened
from kedit_memory.lexicons import Lexicon
from kedit_memory.passages import Passage
from kedit_memory.pooling import Sites, pooled_ahead, pooled_in, pooled_states, watch
from kedit_memory.routing import Routing


class Reader(Protocol):
    """Turns prompts into states."""

    def states(self, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
        """Return states (prompts, features) float32 on the CPU.

        Args:
            prompts: token ids of the base.
            alone: read each by itself: what comes back is then the same bits whatever else is asked.
        """

    def watch(self, routing: Routing) -> list[Any]:
        """Hang up what notes states on the way of a pass, and return the handles."""

    def noted(self, passage: Passage) -> Tensor:
        """Return the states of the prompts of a pass, (rows, features) float32."""

    def ahead(self, passage: Passage) -> Tensor:
        """Return the same in the midst of a pass, for memories that must decide before it ends."""


class OwnReader:
    """The base model reads: pooled states of its blocks."""

    def __init__(self, model: Any, sites: Sites) -> None:
        """Read what ``model`` makes of prompts at ``sites``."""
        self._model, self._sites = model, sites

    def states(self, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
        """Return pooled states (prompts, sites · hidden)."""
        return pooled_states(self._model, self._sites, prompts, alone=alone)

    def watch(self, routing: Routing) -> list[Any]:
        """Note the states where the blocks read them."""
        return watch(self._model, self._sites, routing)

    def noted(self, passage: Passage) -> Tensor:
        """Return pooled states (rows, sites · hidden)."""
        return pooled_in(passage, self._sites)

    def ahead(self, passage: Passage) -> Tensor:
        """Return pooled states (rows, sites · hidden); the model reads the prompts once more."""
        return pooled_ahead(self._model, self._sites, passage)


class EncoderReader:
    """A text encoder reads the text that the base's token ids stand for."""

    def __init__(self, encoder: TextEncoder, tokenizer: Any) -> None:
        """Read with ``encoder`` what ``tokenizer``, the base's, decodes."""
        self._encoder, self._tokenizer = encoder, tokenizer

    def states(self, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
        """Return the encoder's states (prompts, width)."""
        return self._read(prompts, alone=alone).cpu()

    def watch(self, _: Routing) -> list[Any]:
        """Hang up nothing: the ids of a pass are all that is needed."""
        return []

    def noted(self, passage: Passage) -> Tensor:
        """Return the encoder's states of the prompts of a pass, (rows, width)."""
        return self._read(prompts_of(passage), alone=False)

    def ahead(self, passage: Passage) -> Tensor:
        """Return the encoder's states of the prompts of a pass, (rows, width)."""
        return self.noted(passage)

    def _read(self, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
        texts = texts_of(self._tokenizer, prompts)
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        states = self._encoder.states(list(places), alone=alone)  # (different texts, width)
        return states[torch.tensor([places[text] for text in texts], dtype=torch.long)]


class WordReader:
    """Notes which words stand in a prompt, behind the states that somebody else reads."""

    def __init__(self, inner: Reader, lexicon: Lexicon, tokenizer: Any) -> None:
        """Read the words of what ``tokenizer``, the base's, decodes."""
        self._inner, self._lexicon, self._tokenizer = inner, lexicon, tokenizer

    def states(self, prompts: Sequence[Ids], *, alone: bool) -> Tensor:
        """Return the states of ``inner`` and the words, (prompts, features + words)."""
        return self._with_words(self._inner.states(prompts, alone=alone), prompts)

    def watch(self, routing: Routing) -> list[Any]:
        """Hang up what ``inner`` needs."""
        return self._inner.watch(routing)

    def noted(self, passage: Passage) -> Tensor:
        """Return the states of the prompts of a pass and their words, (rows, features + words)."""
        return self._with_words(self._inner.noted(passage), prompts_of(passage))

    def ahead(self, passage: Passage) -> Tensor:
        """Return the states of the prompts in the midst of a pass and their words."""
        return self._with_words(self._inner.ahead(passage), prompts_of(passage))

    def _with_words(self, states: Tensor, prompts: Sequence[Ids]) -> Tensor:
        said = self._lexicon.said(texts_of(self._tokenizer, prompts))
        return torch.cat([states, said.to(states.device)], dim=1)


def reader_of(
    model: Any,
    tokenizer: Any,
    source: Sites | Encoder,
    device: torch.device | str = "cpu",
    lexicon: Lexicon | None = None,
) -> Reader:
    """Return who reads prompts.

    Args:
        model: the frozen base, in ``eval`` mode.
        tokenizer: the base's.
        source: blocks of the base, or an encoder.
        device: of the encoder.
        lexicon: reads the words too.

    Raises:
        KeditError: the encoder is not on this machine, or is another one.
    """
    inner: Reader
    if isinstance(source, Sites):
        inner = OwnReader(model, source)
    else:
        inner = EncoderReader(opened(source, device), tokenizer)
    return inner if lexicon is None else WordReader(inner, lexicon, tokenizer)


def texts_of(tokenizer: Any, prompts: Sequence[Ids]) -> list[str]:
    """Return the texts that token ids stand for, without special tokens."""
    return [
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in prompts
    ]


def prompts_of(passage: Passage) -> list[Ids]:
    """Return the token ids of the prompts of a pass, without pads.

    Raises:
        ModelError: the model was called with embeddings.
    """
    ids, real = passage.ids.cpu(), passage.prompts.cpu()
    return [tuple(row[own].tolist()) for row, own in zip(ids, real, strict=True)]
