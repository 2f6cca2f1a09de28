"""Edit requests: what should hold from now on, and the probes that judge it."""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeVar

from attrs import evolve, field, frozen

from kedit_core.errors import RequestError
from kedit_core.readonly import read_only

T = TypeVar("T", str, str | None)

_SUBJECT = "{}"


def _read_only(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return read_only(values)


def _strings(values: Any) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


@frozen(kw_only=True)
class Probe:
    """A prompt whose answer shows what an edit did elsewhere.

    Attributes:
        prompt: full text.
        answers: any of these aliases counts.
        group: a name to report probes under, such as ``near``.
    """

    prompt: str = field()
    answers: tuple[str, ...] = field(converter=_strings)
    group: str = ""

    @prompt.validator
    def _has_text(self, _: object, value: str) -> None:
        if not value.strip():
            raise RequestError("prompt of a probe is empty")
        _see_that_it_is_text(value)

    @answers.validator
    def _has_answers(self, _: object, value: tuple[str, ...]) -> None:
        if not value or not all(answer.strip() for answer in value):
            raise RequestError(f"probe {self.prompt!r} has no answer")
        _see_that_it_is_text(*value)


@frozen(kw_only=True, init=False)
class EditRequest:
    """One fact as it should be: after ``prompt`` the model shall say ``target_new``.

    ``{}`` in the prompt marks the subject and is filled with it; without it the last occurrence of
    ``subject`` is the subject. Other braces are text; so is ``{}`` where ``subject_span`` says already
    which characters are the subject.

    Attributes:
        prompt: full text, the subject filled in.
        subject: whom or what the fact is about; None for methods that do not need it.
        subject_span: characters of the prompt that hold the subject, [start, end).
        target_new: the new answer, without leading blanks.
        target_true: the old answer, for metrics that compare the two.
        joiner: stands between prompt and target; ``" "``, or ``""`` before CJK or after a blank.
        paraphrases: other wordings of the prompt, ``{}`` for the subject as there; only the
            evaluation sees them.
        locality: what must not change; only the evaluation sees it.
        portability: what should follow from the edit; only the evaluation sees it.
        extra: whatever else the data set says; read-only.

    Raises:
        RequestError: the subject is not in the prompt, is marked twice or marked but not given, or a
            text is empty.
    """

    prompt: str
    subject: str | None
    subject_span: tuple[int, int] | None
    target_new: str
    target_true: str | None
    joiner: str
    paraphrases: tuple[str, ...]
    locality: tuple[Probe, ...]
    portability: tuple[Probe, ...]
    extra: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        *,
        prompt: str,
        target_new: str,
        subject: str | None = None,
        subject_span: tuple[int, int] | None = None,
        target_true: str | None = None,
        joiner: str | None = None,
        paraphrases: tuple[str, ...] = (),
        locality: tuple[Probe, ...] = (),
        portability: tuple[Probe, ...] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not prompt.strip():
            raise RequestError("prompt is empty")
        for name, value in (("target_new", target_new), ("target_true", target_true)):
            if value is not None and not value.strip():
                raise RequestError(f"{name} of {prompt!r} is empty")
        texts = _strings(paraphrases)
        if not all(text.strip() for text in texts):
            raise RequestError(f"a paraphrase of {prompt!r} is empty")
        text, span = _place_subject(prompt, subject, subject_span)
        target, true = _without_blank(target_new, joiner), _without_blank(target_true, joiner)
        _see_that_it_is_text(text, target, true, joiner, *texts)
        self.__attrs_init__(
            prompt=text,
            subject=subject,
            subject_span=span,
            target_new=target,
            target_true=true,
            joiner=joiner_for(text, target) if joiner is None else joiner,
            # A request that comes with its span was filled in already: braces in it are text.
            paraphrases=texts if subject_span else tuple(_filled(one, subject) for one in texts),
            locality=tuple(locality),
            portability=tuple(portability),
            extra=read_only(extra or {}),
        )

    @cached_property
    def id(self) -> str:
        """Return the request's name: 16 hex digits of prompt, subject_span, target_new and joiner."""
        named = [self.prompt, self.subject_span, self.target_new, self.joiner]
        return blake2b(json.dumps(named).encode(), digest_size=8).hexdigest()

    def without_probes(self) -> "EditRequest":
        """Return the request as a method sees it: nobody trains on the test."""
        return evolve(self, paraphrases=(), locality=(), portability=())


def as_requests(values: Iterable[EditRequest]) -> tuple[EditRequest, ...]:
    """Return requests as a tuple."""
    return tuple(values)


@frozen(kw_only=True)
class EditBatch:
    """What one call of a method is asked for.

    Attributes:
        requests: the edits to make, in order.
        remove: ids of edits that a memory shall drop.
        step: how many batches came before, from 0.
        chat: prompts are rendered through the tokenizer's chat template.
        notes: what the method noted when it made just these edits before; empty where they are new.
            Read-only.
    """

    requests: tuple[EditRequest, ...] = field(converter=as_requests)
    remove: tuple[str, ...] = field(default=(), converter=_strings)
    step: int = 0
    chat: bool = False
    notes: Mapping[str, Any] = field(factory=dict, converter=_read_only, hash=False, repr=False)


def _filled(text: str, subject: str | None) -> str:
    return text if subject is None else text.replace(_SUBJECT, subject)


def _place_subject(
    prompt: str, subject: str | None, span: tuple[int, int] | None
) -> tuple[str, tuple[int, int] | None]:
    """Return the prompt with its subject filled in, and the characters that hold it."""
    if subject is None:
        if span is not None:
            raise RequestError(f"subject_span {tuple(span)} of {prompt!r} comes without a subject")
        if _SUBJECT in prompt:
            raise RequestError(
                f"prompt {prompt!r} marks a subject with {{}}, but none is given; where {{}} is text, "
                "give subject and subject_span"
            )
        return prompt, None
    if not subject.strip():
        raise RequestError(f"subject of {prompt!r} is empty")
    if span is not None:
        if len(span) != 2:
            raise RequestError(f"subject_span {tuple(span)} of {prompt!r} is no pair of positions")
        start, end = span
        if start < 0 or end > len(prompt):
            raise RequestError(f"subject_span [{start}, {end}) reaches beyond {prompt!r}")
        if prompt[start:end] != subject:
            found = prompt[start:end]
            raise RequestError(f"subject_span [{start}, {end}) holds {found!r}, not {subject!r}")
        return prompt, (start, end)
    marks = prompt.count(_SUBJECT)
    if marks > 1:
        raise RequestError(
            f"prompt {prompt!r} marks its subject with {{}} {marks} times; once is enough"
        )
    if marks:
        start = prompt.index(_SUBJECT)
        return prompt.replace(_SUBJECT, subject), (start, start + len(subject))
    start = prompt.rfind(subject)
    if start < 0:
        raise RequestError(
            f"subject {subject!r} is not in the prompt {prompt!r}; mark its place with {{}}"
        )
    return prompt, (start, start + len(subject))


def _without_blank(target: T, joiner: str | None) -> T:
    """Return a target without leading blanks, unless its own blank is what joins it."""
    return target if target is None or joiner == "" else target.lstrip()


def _see_that_it_is_text(*texts: str | None) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no tokenizer can read."""
    for text in texts:
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(f"{text!r} holds half a surrogate pair, which is no character")


def joiner_for(prompt: str, target: str) -> str:
    """Return what stands between a prompt and its answer: a blank, or nothing before CJK or after a blank."""
    return "" if prompt[-1].isspace() or _unspaced(target[0]) else " "


def _unspaced(character: str) -> bool:
    """Tell whether a script writes this character without a blank before it."""
    name = unicodedata.name(character, "")
    return name.startswith(("CJK ", "HIRAGANA", "KATAKANA", "FULLWIDTH", "THAI", "LAO", "KHMER"))
