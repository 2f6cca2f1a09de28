"""KnowEdit's four sets of facts: wiki_counterfact, wiki_recent, ZsRE and WikiBio."""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes, subject_in
from kedit_lab.schemas.schema import Schema, noted

_PROMPTS = ("prompt", "text")
_TARGETS = ("target_new", "labels")
_SUBJECTS = ("subject", "concept")
_PARAPHRASES = ("rephrase_prompt", "rephrase")
_AXES = ("portability", "locality")
_FIELDS = (*_PROMPTS, *_TARGETS, *_SUBJECTS, *_PARAPHRASES, *_AXES, "ground_truth")


def _recognises(record: Mapping[str, Any]) -> bool:
    def has(names: tuple[str, ...]) -> bool:
        return any(isinstance(record.get(name), str) for name in names)

    grouped = any(isinstance(record.get(axis), dict) for axis in _AXES)
    return grouped and has(_PROMPTS) and has(_TARGETS) and has(_SUBJECTS)


def _requests_of(record: Fields) -> Iterator[EditRequest]:
    prompt = record.text(*_PROMPTS)
    subject, span = subject_in(prompt, record, *_SUBJECTS)
    true = record.answers("ground_truth")
    portability, locality = (_grouped(record, axis) for axis in _AXES)
    yield EditRequest(
        prompt=prompt,
        subject=subject,
        subject_span=span,
        target_new=record.text(*_TARGETS),
        target_true=true[0] if true else None,
        paraphrases=tuple(text for name in _PARAPHRASES for text in record.texts(name)),
        portability=tuple(portability.found),
        locality=tuple(locality.found),
        extra=noted(record.rest(_FIELDS), portability, locality),
    )


def _grouped(record: Fields, axis: str) -> Probes:
    """Return the probes of an axis, each in the group under whose name the record has it."""
    found, groups = Probes(), record.maybe_inner(axis)
    for name in groups.values if groups is not None else ():
        for one in groups.each(name) if groups is not None else ():
            found.add(one, "prompt", "ground_truth", name)
    return found


KNOWEDIT = Schema(name="knowedit", recognises=_recognises, requests_of=_requests_of)
