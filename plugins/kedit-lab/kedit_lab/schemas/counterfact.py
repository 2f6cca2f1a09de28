"""CounterFact: as ROME and MEMIT publish it (Multi-CounterFact, too), and as flat records."""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest, Probe
from kedit_lab.fields import Fields, Probes, subject_in
from kedit_lab.schemas.schema import Schema, noted, one_hop

_NESTED = ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "portability")
_FLAT = (
    "prompt",
    "subject",
    "target_new",
    "ground_truth",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
)


def _recognises(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("requested_rewrite"), dict) or set(_FLAT) <= set(record)


def _requests_of(record: Fields) -> Iterator[EditRequest]:
    yield _nested(record) if "requested_rewrite" in record else _flat(record)


def _nested(record: Fields) -> EditRequest:
    rewrite = record.inner("requested_rewrite")
    new, true = rewrite.inner("target_new"), rewrite.inner("target_true")
    portability = Probes()
    one_hop(record, portability)
    extra = record.rest(_NESTED) | rewrite.rest(("prompt", "subject", "target_new", "target_true"))
    ids = {
        f"target_{name}_id": one.maybe_text("id") for name, one in (("new", new), ("true", true))
    }
    answer = true.text("str")
    return EditRequest(
        prompt=rewrite.text("prompt"),
        subject=rewrite.text("subject"),
        target_new=new.text("str"),
        target_true=answer,
        paraphrases=record.texts("paraphrase_prompts"),
        locality=tuple(
            Probe(prompt=prompt, answers=(answer,), group="near")
            for prompt in record.texts("neighborhood_prompts")
        ),
        portability=tuple(portability.found),
        extra=noted(extra | {name: text for name, text in ids.items() if text}, portability),
    )


def _flat(record: Fields) -> EditRequest:
    prompt = record.text("prompt")
    subject, span = subject_in(prompt, record, "subject")
    near = Probes()
    near.add(record, "locality_prompt", "locality_ground_truth", "near")
    return EditRequest(
        prompt=prompt,
        subject=subject,
        subject_span=span,
        target_new=record.text("target_new"),
        target_true=record.maybe_text("ground_truth"),
        paraphrases=record.texts("rephrase_prompt"),
        locality=tuple(near.found),
        extra=noted(record.rest(_FLAT), near),
    )


COUNTERFACT = Schema(name="counterfact", recognises=_recognises, requests_of=_requests_of)
