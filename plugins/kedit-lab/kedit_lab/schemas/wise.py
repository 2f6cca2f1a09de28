"""WISE's hallucination set (from SelfCheckGPT) and its temporal set; answers are whole sentences.

The temporal set's ``ood_rephrase`` is a running text that is judged by itself, with no answer to ask for; it
is no paraphrase of the prompt and stays in ``extra``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes, subject_in
from kedit_lab.schemas.schema import Schema, noted

_FIELDS = ("prompt", "subject", "target_new", "locality_prompt", "locality_ground_truth")
_OTHERS = {"ground_truth", "rephrase_prompt"}


def _is_hallucination(record: Mapping[str, Any]) -> bool:
    return set(_FIELDS) <= set(record) and not {"ood_rephrase", *_OTHERS} & set(record)


def _is_temporal(record: Mapping[str, Any]) -> bool:
    return {*_FIELDS, "ood_rephrase"} <= set(record)


def _requests_of(record: Fields) -> Iterator[EditRequest]:
    prompt = record.text("prompt")
    subject, span = subject_in(prompt, record, "subject")
    unrelated = Probes()
    unrelated.add(record, "locality_prompt", "locality_ground_truth", "unrelated")
    yield EditRequest(
        prompt=prompt,
        subject=subject,
        subject_span=span,
        target_new=record.text("target_new"),
        locality=tuple(unrelated.found),
        extra=noted(record.rest(_FIELDS), unrelated),
    )


WISE_HALLUCINATION = Schema(
    name="wise-hallucination", recognises=_is_hallucination, requests_of=_requests_of
)
WISE_TEMPORAL = Schema(name="wise-temporal", recognises=_is_temporal, requests_of=_requests_of)
