"""Facts that a model knows, and the groups that their tokens fall into."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import nn

from kedit_core import EditBatch, EditRequest, encode
from kedit_core.errors import RequestError
from kedit_core.questions import questions_of
from kedit_core.scoring import score_answers
from kedit_core.tokens import Encoded, Ids, encode_target

GROUPS = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)
"""Each token from the subject on belongs to one of them."""

FIRST, MIDDLE, SUBJECT, AFTER, FURTHER, LAST = range(len(GROUPS))


@frozen(kw_only=True)
class Fact:
    """A prompt, and the answer that a model gives.

    Attributes:
        name: of its request.
        ids: (tokens,).
        subject: its tokens.
        answer: the first token of the answer; None for what the model says.
    """

    name: str
    ids: Ids
    subject: range
    answer: int | None

    @property
    def groups(self) -> Mapping[int, int]:
        """Return the group of each token from the subject on.

        A subject of one token has a last one only. Where two names fit, the prompt's last token is just
        that.
        """
        first, last, end = self.subject[0], self.subject[-1], len(self.ids) - 1
        named = {first: FIRST, last + 1: AFTER, last: SUBJECT, end: LAST}
        return {
            place: named.get(place, MIDDLE if place < last else FURTHER)
            for place in range(first, len(self.ids))
        }


def known_facts(
    model: nn.Module, tokenizer: Any, requests: Sequence[EditRequest], *, chat: bool = False
) -> list[Fact]:
    """Return the facts of those requests whose whole answer the model says.

    The answer is ``target_true``; a request without one is a fact whatever the model says.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
        requests: with subjects.
        chat: render each prompt through the chat template.

    Raises:
        RequestError: a request has no subject, or it is longer than the model's context.
    """
    texts = encode(tokenizer, [request.prompt for request in requests], chat)
    answers = [_answer(tokenizer, *pair) for pair in zip(requests, texts, strict=True)]
    asked = [(text.ids, answer) for text, answer in zip(texts, answers, strict=True) if answer]
    said = dict(zip(asked, score_answers(model, asked), strict=True))
    return [
        Fact(
            name=request.id,
            ids=text.ids,
            subject=_subject(request, text),
            answer=answer[0] if answer else None,
        )
        for request, text, answer in zip(requests, texts, answers, strict=True)
        if not answer or said[text.ids, answer].exact
    ]


def _answer(tokenizer: Any, request: EditRequest, text: Encoded) -> Ids:
    if request.target_true is None:
        return ()
    (question,) = questions_of(EditBatch(requests=(request,)), "reliability")
    return encode_target(tokenizer, text, question.joined(request.target_true))


def _subject(request: EditRequest, text: Encoded) -> range:
    """Return the tokens of a request's subject."""
    if request.subject_span is None:
        raise RequestError(f"the subject of {request.prompt!r} is needed")
    start, end = request.subject_span
    last = text.last_token_of((start, end))
    covering = [place for place, (a, b) in enumerate(text.offsets) if a < end and b > start]
    return range(min(covering), last + 1)
