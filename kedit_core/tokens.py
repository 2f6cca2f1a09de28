"""Texts into token ids, with the place of every character."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from attrs import field, frozen

from kedit_core.errors import RequestError

_PLACEHOLDER = "⟦kedit⟧"


@frozen(kw_only=True)
class Encoded:
    """A text as a model reads it.

    Attributes:
        text: as it was given, before any chat template.
        ids: (tokens,).
        offsets: (tokens,) characters of ``text`` that each token covers, [start, end); tokens of
            the
            template and special tokens cover nothing.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...] = field(repr=False)

    def last_token_of(self, span: tuple[int, int]) -> int:
        """Return the position of the last token that covers the last character of ``span``.

        Raises:
            RequestError: no token covers it, for example because the text was cut off.
        """
        last = span[1] - 1
        covering = [place for place, (start, end) in enumerate(self.offsets) if start <= last < end]
        if not covering:
            raise RequestError(f"no token covers {self.text[slice(*span)]!r} in {self.text!r}")
        return covering[-1]


def encode(tokenizer: Any, texts: Sequence[str], chat: bool = False) -> list[Encoded]:
    """Return the token ids of each text and the characters that each token covers.

    Args:
        tokenizer: of the model.
        texts: as a user would type them.
        chat: render each text as the user's turn of the tokenizer's chat template, the assistant's
            turn open.

    Raises:
        RequestError: the tokenizer has no chat template, or the template fails or does not show the
            text as it is.
    """
    return [_encode(tokenizer, text, chat) for text in texts]


def encode_target(tokenizer: Any, prompt: Encoded, target: str) -> tuple[int, ...]:
    """Return the ids of ``target`` as it continues ``prompt``, joiner included.

    They are taken from the joint text when its ids begin with the prompt's, else from the target
    alone, so that prompt ids + target ids is what the model reads either way.

    Raises:
        RequestError: the target tokenises to nothing.
    """
    joint = tuple(tokenizer(prompt.text + target)["input_ids"])
    if joint[: len(prompt.ids)] == prompt.ids:
        ids = joint[len(prompt.ids) :]
    else:
        ids = tuple(tokenizer(target, add_special_tokens=False)["input_ids"])
    if not ids:
        raise RequestError(f"target {target!r} tokenises to nothing")
    return ids


def context_of(model: Any) -> int:
    """Return how many tokens the model can read at a time, as far as it says so."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def check_context(model: Any, tokens: int) -> None:
    """See that a text of so many tokens can be read.

    Raises:
        RequestError: it is longer than the model's context.
    """
    if tokens > context_of(model):
        raise RequestError(
            f"a text of {tokens} tokens is longer than the model's context of {context_of(model)}"
        )


def _encode(tokenizer: Any, text: str, chat: bool) -> Encoded:
    rendered, shift = _rendered(tokenizer, text) if chat else (text, 0)
    ids, offsets = _ids_and_offsets(tokenizer, rendered, special=not chat)
    # A token may reach over the edge: the blank that a template sets before the text joins its word.
    clipped = ((max(start - shift, 0), min(end - shift, len(text))) for start, end in offsets)
    inside = tuple((start, end) if start < end else (0, 0) for start, end in clipped)
    return Encoded(text=text, ids=tuple(ids), offsets=inside)


def _rendered(tokenizer: Any, text: str) -> tuple[str, int]:
    """Return the chat template around a text, and the place of the text in it."""
    rendered = _render(tokenizer, text)
    # Looked for where another text of the same turn starts: the template may use the same words.
    shift = _render(tokenizer, _PLACEHOLDER).find(_PLACEHOLDER)
    if shift < 0 or not rendered.startswith(text, shift):
        raise RequestError(f"the chat template does not show the prompt {text!r} as it is")
    return rendered, shift


def _render(tokenizer: Any, text: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError("this tokenizer has no chat template; leave chat out")
    turns = [{"role": "user", "content": text}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    # A template is a program of its author's; it may raise what it likes.
    except Exception as error:
        raise RequestError(f"the chat template fails on {text!r}: {error}") from error


def _ids_and_offsets(
    tokenizer: Any, text: str, *, special: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return found["input_ids"], [tuple(offset) for offset in found["offset_mapping"]]
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids, _cumulative_offsets(tokenizer, text, ids)


def _cumulative_offsets(tokenizer: Any, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """Find where each token ends by decoding ever more of them; exact or refused."""
    special = set(tokenizer.all_special_ids)
    plain = [place for place, token in enumerate(ids) if token not in special]
    ends = [0]
    for count in range(1, len(plain) + 1):
        shown = tokenizer.decode([ids[place] for place in plain[:count]])
        # An unfinished character decodes to the replacement sign: its token ends where the last one
        # did.
        ends.append(len(shown) if text.startswith(shown) else ends[-1])
    if ends[-1] != len(text):
        raise RequestError(
            f"this tokenizer gives no offsets and does not decode {text!r} back to itself"
        )
    offsets = [(0, 0)] * len(ids)
    for place, (start, end) in zip(plain, pairwise(ends), strict=True):
        offsets[place] = (start, end)
    return offsets
