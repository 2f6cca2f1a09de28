"""WikiBigEdit: questions on facts that changed in Wikidata, in the order of time."""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes, subject_in
from kedit_lab.schemas.schema import Schema, noted

_FIELDS = (
    "update",
    "subject",
    "ans",
    "rephrase",
    "personas",
    "loc",
    "loc_ans",
    "mhop",
    "mhop_ans",
)


def _recognises(record: Mapping[str, Any]) -> bool:
    return {"update", "subject", "ans", "loc", "loc_ans"} <= set(record)


def _requests_of(record: Fields) -> Iterator[EditRequest]:
    prompt = record.text("update")
    subject, span = subject_in(prompt, record, "subject")
    true = record.answers("ground_truth")
    locality, portability = Probes(), Probes()
    locality.add(record, "loc", "loc_ans", "loc")
    portability.add(record, "personas", "ans", "personas")
    portability.add(record, "mhop", "mhop_ans", "multi_hop")
    yield EditRequest(
        prompt=prompt,
        subject=subject,
        subject_span=span,
        target_new=record.text("ans"),
        target_true=true[0] if true else None,
        paraphrases=record.texts("rephrase"),
        locality=tuple(locality.found),
        portability=tuple(portability.found),
        extra=noted(record.rest((*_FIELDS, "ground_truth")), locality, portability),
    )


WIKIBIGEDIT = Schema(name="wikibigedit", recognises=_recognises, requests_of=_requests_of)
