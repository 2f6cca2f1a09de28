"""MQuAKE and MQuAKE-Remastered: several edits a record, and questions that need all of them.

Each edit is a request of its own; the record's questions stand with its last one, after which all of them
can be answered.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes
from kedit_lab.schemas.schema import Schema, noted

_ASKED = ("requested_rewrite", "questions", "new_answer", "new_answer_alias", "new_single_hops")
_EDIT = ("prompt", "subject", "question", "target_new", "target_true")
_EDIT_STRINGS = ("target_new_str", "target_true_str")


def _recognises(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("requested_rewrite"), list) and "questions" in record


def _requests_of(record: Fields) -> Iterator[EditRequest]:
    edits = list(record.each("requested_rewrite"))
    if not edits:
        raise record.wrong("requested_rewrite", "is missing or empty")
    questions = _questions(record)
    for number, edit in enumerate(edits, 1):
        last = number == len(edits)
        place = {"edit": number, "edits": len(edits), **edit.rest(_EDIT + _EDIT_STRINGS)}
        shared = (
            record.rest(_ASKED)
            if last
            else {n: record.values[n] for n in ("case_id",) if n in record}
        )
        yield EditRequest(
            prompt=edit.text("prompt"),
            subject=edit.text("subject"),
            target_new=_target(edit, "target_new"),
            target_true=_target(edit, "target_true") if _has(edit, "target_true") else None,
            paraphrases=edit.texts("question"),
            portability=tuple(questions.found) if last else (),
            extra=noted({**shared, **place}, questions) if last else {**shared, **place},
        )


def _has(edit: Fields, name: str) -> bool:
    return name in edit or f"{name}_str" in edit


def _target(edit: Fields, name: str) -> str:
    """Return a target, which the first MQuAKE nests and the remastered one does not."""
    if isinstance(edit.values.get(name), dict):
        return edit.inner(name).text("str")
    return edit.text(f"{name}_str", name)


def _questions(record: Fields) -> Probes:
    found = Probes()
    answers = record.answers("new_answer") + record.answers("new_answer_alias")
    for question in record.texts("questions"):
        found.put(question, answers, "multi_hop", "new_answer")
    for hop in record.each("new_single_hops"):
        aliases = hop.answers("answer") + hop.answers("answer_alias")
        found.put(hop.text("question", "cloze"), aliases, "single_hop", hop.named("answer"))
    return found


MQUAKE = Schema(name="mquake", recognises=_recognises, requests_of=_requests_of)
