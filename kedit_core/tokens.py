"""Texts into token ids, with the place of every character."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

from attrs import field, frozen

from kedit_core.chats import Turn, as_turn
from kedit_core.errors import RequestError

Ids = tuple[int, ...]

_ANY_TEXT = "a"
_NEUTRAL = ("\n", ".", "a")  # what a continuation may be tokenised behind


@frozen(kw_only=True)
class Encoded:
    """A text as a model reads it.

    Attributes:
        text: as it was given, before any chat template.
        ids: (tokens,).
        offsets: (tokens,) characters of ``text`` that each token covers, [start, end); tokens of
            the template and special tokens cover nothing.
        read: the whole text that the ids stand for, the chat template around it included.
        lead: in a chat, the blanks between what is read and the answer; None outside chats, where
            each request has its joiner.
    """

    text: str
    ids: Ids
    offsets: tuple[tuple[int, int], ...] = field(repr=False)
    read: str = field(repr=False)
    lead: str | None = field(default=None, repr=False)

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

    Special tokens that the tokenizer puts before a text are there, those that it puts after one are
    not: an end-of-text token has no place between a prompt and its answer.

    Args:
        tokenizer: of the model.
        texts: as a user would type them.
        chat: render each text as the user's turn of the tokenizer's chat template, the assistant's
            turn open.

    Raises:
        RequestError: the tokenizer has no chat template, or the template fails or does not show the
            text as it is.
    """
    turns = [as_turn(tokenizer, text) if chat else None for text in texts]
    read = [turn.rendered if turn else text for text, turn in zip(texts, turns, strict=True)]
    offsets = _offsets(tokenizer, read, special=not chat)
    return [
        _encoded(text, whole, ids, places, turn)
        for text, whole, (ids, places), turn in zip(texts, read, offsets, turns, strict=True)
    ]


def encode_target(tokenizer: Any, prompt: Encoded, target: str) -> Ids:
    """Return the ids of ``target`` as it continues ``prompt``, joiner included.

    They are taken from the joint text when its ids begin with the prompt's, else from the target
    alone, so that prompt ids + target ids is what the model reads either way. In a chat the template
    says what stands before an answer, so blanks that ``target`` begins with give way to that.

    Args:
        tokenizer: of the model.
        prompt: as :func:`encode` read it.
        target: what shall follow it.

    Raises:
        RequestError: the target tokenises to nothing.
    """
    return encode_targets(tokenizer, [prompt], [target])[0]


def encode_targets(tokenizer: Any, prompts: Sequence[Encoded], targets: Sequence[str]) -> list[Ids]:
    """Return, for each prompt and its target, what :func:`encode_target` does, for all at once.

    Args:
        tokenizer: of the model.
        prompts: all read in a chat, or none.
        targets: what shall follow each.

    Raises:
        RequestError: a target tokenises to nothing.
    """
    leads = [prompt.lead for prompt in prompts]
    joined = [
        target if lead is None else lead + target.lstrip()
        for lead, target in zip(leads, targets, strict=True)
    ]
    texts = [prompt.read + target for prompt, target in zip(prompts, joined, strict=True)]
    joint = all_ids_of(tokenizer, texts, special=None in leads)
    found = []
    for prompt, target, ids in zip(prompts, joined, joint, strict=True):
        apart = ids[: len(prompt.ids)] != prompt.ids
        own = _continuation(tokenizer, prompt.ids, target) if apart else ids[len(prompt.ids) :]
        if not own:
            raise RequestError(f"target {target!r} tokenises to nothing")
        found.append(own)
    return found


def ids_of(tokenizer: Any, text: str, *, special: bool = True) -> Ids:
    """Return the ids of a text, without the special tokens that a tokenizer puts after every text.

    Args:
        tokenizer: of the model.
        text: as the model shall read it.
        special: with those that the tokenizer puts before it.
    """
    return all_ids_of(tokenizer, [text], special=special)[0]


def all_ids_of(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[Ids]:
    """Return, for each text, what :func:`ids_of` does, for all at once.

    Args:
        tokenizer: of the model.
        texts: as the model shall read them.
        special: with the tokens that the tokenizer puts before a text.
    """
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return _ended(tokenizer, found, special=special)


def beginning_of(tokenizer: Any) -> Ids:
    """Return the special tokens that a tokenizer puts before every text.

    Args:
        tokenizer: of the model.
    """
    return _added(tokenizer)[0]


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


def _encoded(
    text: str, read: str, ids: Ids, offsets: Sequence[tuple[int, int]], turn: Turn | None
) -> Encoded:
    shift = turn.shift if turn else 0
    first, last = turn.shown if turn else (0, len(text))
    # A token may reach over the edge: the blank that a template sets before the text joins its word.
    clipped = ((max(start - shift, first), min(end - shift, last)) for start, end in offsets)
    inside = tuple((start, end) if start < end else (0, 0) for start, end in clipped)
    lead = turn.lead if turn else None
    return Encoded(text=text, ids=ids, offsets=inside, read=read, lead=lead)


def _ended(tokenizer: Any, found: Sequence[Sequence[int]], *, special: bool) -> list[Ids]:
    """Return the ids of texts without what a tokenizer puts after every one."""
    after = _added(tokenizer)[1] if special else ()
    cut = len(after)
    return [
        tuple(ids[: len(ids) - cut]) if cut and tuple(ids[-cut:]) == after else tuple(ids)
        for ids in found
    ]


def _added(tokenizer: Any) -> tuple[Ids, Ids]:
    """Return the special tokens that a tokenizer puts before and after every text."""
    bare = tokenizer(_ANY_TEXT, add_special_tokens=False)["input_ids"]
    whole = tuple(tokenizer(_ANY_TEXT)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == tuple(bare):
            return whole[:start], whole[start + len(bare) :]
    return (), ()


def _continuation(tokenizer: Any, before: Ids, text: str) -> Ids:
    """Return the ids of a text that continues others, though its tokens do not when read with theirs.

    Tokenizers that begin every text with a blank (SentencePiece) would put one here too, so the text is
    tokenised behind something neutral where that shows.
    """

    def shown(ids: Ids) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    alone = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    wanted = shown(before) + text
    if shown(before + alone) == wanted:
        return alone
    for neutral in _NEUTRAL:
        head = tuple(tokenizer(neutral, add_special_tokens=False, verbose=False)["input_ids"])
        joint = tuple(
            tokenizer(neutral + text, add_special_tokens=False, verbose=False)["input_ids"]
        )
        behind = joint[len(head) :]
        if joint[: len(head)] == head and shown(before + behind) == wanted:
            return behind
    return alone


def _offsets(
    tokenizer: Any, texts: Sequence[str], *, special: bool
) -> Iterator[tuple[Ids, list[tuple[int, int]]]]:
    """Yield the ids of each text with the characters that each covers."""
    if not tokenizer.is_fast or not texts:
        for text, ids in zip(texts, all_ids_of(tokenizer, texts, special=special), strict=True):
            yield ids, _cumulative_offsets(tokenizer, text, ids)
        return
    found = tokenizer(
        list(texts), add_special_tokens=special, return_offsets_mapping=True, verbose=False
    )
    all_ids = _ended(tokenizer, found["input_ids"], special=special)
    for text, ids, offsets in zip(texts, all_ids, found["offset_mapping"], strict=True):
        own = [tuple(offset) for offset in offsets[: len(ids)]]
        yield ids, _told_apart(tokenizer, text, ids, own)


def _told_apart(
    tokenizer: Any, text: str, ids: Ids, offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return offsets in which tokens that share several characters are given each its own.

    Unigram tokenizers read a run of characters they do not know as bytes, and say of each byte that it
    covers the whole run.
    """
    if all(one != other for one, other in pairwise(offsets)):
        return offsets
    found: list[tuple[int, int]] = []
    for (start, end), group in groupby(range(len(offsets)), key=offsets.__getitem__):
        places = list(group)
        reached = [start]
        for last in places if len(places) > 1 and end - start > 1 else ():
            shown = tokenizer.decode([ids[place] for place in places if place <= last])
            whole = text[start:end].startswith(shown)
            reached.append(max(reached[-1], start + len(shown)) if whole else reached[-1])
        apart = len(reached) > 1 and reached[-1] == end
        found += pairwise(reached) if apart else [(start, end)] * len(places)
    return found


def _cumulative_offsets(tokenizer: Any, text: str, ids: Ids) -> list[tuple[int, int]]:
    """Find where each token ends by decoding ever more of them; exact or refused."""
    special = set(tokenizer.all_special_ids)
    plain = [place for place, token in enumerate(ids) if token not in special]
    ends = [0]
    for count in range(1, len(plain) + 1):
        part = [ids[place] for place in plain[:count]]
        shown = tokenizer.decode(part, clean_up_tokenization_spaces=False)
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
