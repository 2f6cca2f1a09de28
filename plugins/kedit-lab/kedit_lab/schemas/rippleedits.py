"""RippleEdits: one changed fact and six kinds of tests of what follows from it and what does not.

The fact comes as a whole sentence: ``sentences`` finds where its answer begins and whom it is about. A test
that asks for several answers at once counts here when one of them is given. When a test counts at all
(``condition_queries`` must be known before) and how its queries are combined (``test_condition``) is kept in
``extra["tests"]``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core import EditRequest
from kedit_lab.fields import Fields, Probes
from kedit_lab.schemas.schema import Schema, noted
from kedit_lab.sentences import Query, split_sentence, subject_of

_LOCALITY = {
    "Relation_Specificity": "Relation_Specificity",
    "Relation_Specifity": "Relation_Specificity",  # as the data set's own page spells it
    "Forgetfulness": "Forgetfulness",
}
_PORTABILITY = {
    name: name
    for name in (
        "Logical_Generalization",
        "Compositionality_I",
        "Compositionality_II",
        "Subject_Aliasing",
    )
}
_GROUPS = {**_LOCALITY, **_PORTABILITY}
_KNOWN = ("prompt", "original_fact", "previous_fact")


def _recognises(record: Mapping[str, Any]) -> bool:
    edit = record.get("edit")
    return isinstance(edit, dict) and "prompt" in edit and bool(set(_GROUPS) & set(record))


def _requests_of(record: Fields) -> Iterator[EditRequest]:
    edit = record.inner("edit")
    sentence = edit.text("prompt")
    before = edit.maybe_inner("original_fact") or edit.maybe_inner("previous_fact")
    former = None if before is None else before.maybe_text("prompt")
    queries = tuple(_queries(record, edit))
    split = split_sentence(sentence, former, queries)
    if split is None:
        raise edit.wrong("prompt", f"does not show where its answer begins: {sentence!r}")
    subject, span = subject_of(split.stem, edit.maybe_text("relation"), queries)
    locality, portability = Probes(), Probes()
    tests = [*_tests(record, _LOCALITY, locality), *_tests(record, _PORTABILITY, portability)]
    extra = {**record.rest(("edit", *_GROUPS)), **edit.rest(_KNOWN), "tests": tests}
    yield EditRequest(
        prompt=split.stem,
        subject=subject,
        subject_span=span,
        target_new=split.answer,
        target_true=split.former,
        locality=tuple(locality.found),
        portability=tuple(portability.found),
        extra=noted(extra, locality, portability),
    )


def _queries(record: Fields, edit: Fields) -> Iterator[Query]:
    """Yield all queries of a record: they show how the subject and the answer are written."""
    for name in _GROUPS:
        for test in record.each(name):
            for kind in ("test_queries", "condition_queries"):
                for query in test.each(kind):
                    yield _query(query, edit)


def _query(query: Fields, edit: Fields) -> Query:
    about, target = edit.values.get("subject_id"), edit.values.get("target_id")
    # A query with a phrase of its own may call the subject by an alias.
    named = "phrase" not in query
    same = named and about is not None and query.values.get("subject_id") == about
    plain = query.values.get("query_type", "regular") == "regular"
    relation = query.values.get("relation") == edit.values.get("relation")
    targets = query.values.get("target_ids")
    asks = plain and isinstance(targets, list) and target is not None and targets == [target]
    return Query(
        prompt=query.text("prompt", "phrase"),
        same_subject=same,
        same_fact=same and plain and relation,
        targets=_answers(query) if asks else (),
    )


def _answers(query: Fields) -> tuple[str, ...]:
    found = [
        text
        for one in query.each("answers")
        for name in ("value", "aliases")
        for text in one.answers(name)
    ]
    return tuple(dict.fromkeys(found))


def _tests(record: Fields, groups: Mapping[str, str], into: Probes) -> Iterator[dict[str, Any]]:
    """Add the probes of each test, and yield what else is known of the test."""
    for name, group in groups.items():
        for test in record.each(name):
            first = len(into.found)
            for query in test.each("test_queries"):
                prompt = query.text("prompt", "phrase")
                into.put(prompt, _answers(query), group, query.named("answers"))
            yield {
                "group": group,
                "prompts": [probe.prompt for probe in into.found[first:]],
                "test_condition": test.maybe_text("test_condition"),
                "condition_queries": [
                    {"prompt": query.text("prompt", "phrase"), "answers": list(_answers(query))}
                    for query in test.each("condition_queries")
                ],
            }


RIPPLEEDITS = Schema(name="rippleedits", recognises=_recognises, requests_of=_requests_of)
