"""ZsRE in MEND's form, with or without the portability question, under two protocols.

MEND, WISE and EasyEdit write the alternative answer ``alt``; MEMIT writes the true one and puts a question
mark behind the unrelated question. Either way that question keeps its prefix "nq question: ", as in all
published figures.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes, subject_in
from kedit_lab.schemas.schema import Schema, noted, one_hop

_FIELDS = ("src", "subject", "rephrase", "loc", "loc_ans", "portability")


def _recognises(record: Mapping[str, Any]) -> bool:
    return {"src", "subject", "alt", "answers", "loc", "loc_ans"} <= set(record)


def _never(_: Mapping[str, Any]) -> bool:
    """Refuse: the records are those of ``zsre``, so this protocol must be asked for."""
    return False


def _mend(record: Fields) -> Iterator[EditRequest]:
    true = record.answers("answers")[:1]
    yield _request(record, record.text("alt"), true[0] if true else None, record.maybe_text("loc"))


def _memit(record: Fields) -> Iterator[EditRequest]:
    true = record.answers("answers")
    if not true:
        raise record.wrong("answers", "holds no answer")
    question = record.maybe_text("loc")
    yield _request(record, true[0], None, None if question is None else f"{question}?")


def _request(record: Fields, new: str, true: str | None, question: str | None) -> EditRequest:
    prompt = record.text("src")
    subject, span = subject_in(prompt, record, "subject")
    portability, locality = Probes(), Probes()
    one_hop(record, portability)
    if question is not None:
        locality.put(question, record.answers("loc_ans"), "nq", "loc_ans")
    return EditRequest(
        prompt=prompt,
        subject=subject,
        subject_span=span,
        target_new=new,
        target_true=true,
        paraphrases=record.texts("rephrase"),
        locality=tuple(locality.found),
        portability=tuple(portability.found),
        extra=noted(record.rest(_FIELDS), locality, portability),
    )


ZSRE = Schema(name="zsre", recognises=_recognises, requests_of=_mend)
ZSRE_MEMIT = Schema(name="zsre-memit", recognises=_never, requests_of=_memit)
