"""Sentences that state a fact, taken apart: "The mother of Ada is Eve." is a stem, an answer and a subject.

RippleEdits writes its edits so. Its sentences are made of about fifty phrases, one a relation, which all put
the answer last; nearly all name the subject right before "is" or "are".
"""

import re
from collections.abc import Collection

from attrs import frozen

_LINK = re.compile(
    r" (?:is|are|follows|is followed by)"
    r"(?= (?!associated with |a member of |part of |the capital of |followed by ))"
)
_PLACES = tuple(
    re.compile(form)
    for form in (
        r" which (.+) (?:is associated with|is a member of|plays in|is part of|is the capital of) is$",
        r" held by (.+) is$",
        r" of children (.+) has is$",
        r" award (.+) won is$",
        r" currency in (.+) is$",
        r" performed in (.+) is$",
        r"^(.+?) (?:follows|is followed by)$",
    )
)
_OF = re.compile(r"^The (?:names? of the )?(.+) (?:is|are)$")


@frozen(kw_only=True)
class Query:
    """What a query on or around the fact tells of it.

    Attributes:
        prompt: without an answer.
        same_subject: it asks about the subject by the name that the fact has for it.
        same_fact: it asks for the very fact.
        targets: how the fact's new answer is written, where the query asks for it; the label first.
    """

    prompt: str
    same_subject: bool = False
    same_fact: bool = False
    targets: tuple[str, ...] = ()


@frozen(kw_only=True)
class Statement:
    """A sentence taken apart.

    Attributes:
        stem: up to the answer.
        answer: without the full stop.
        former: what the former sentence says in its place; None when that is not known.
    """

    stem: str
    answer: str
    former: str | None


def split_sentence(
    sentence: str, former: str | None, queries: Collection[Query]
) -> Statement | None:
    """Return stem and answer of a sentence, or None when they cannot be told apart for certain.

    Args:
        sentence: states the fact.
        former: states the former fact in the same words, if there was one.
        queries: around the fact.
    """
    ends = sorted(_ends(sentence, former, queries))
    if not ends:
        return None
    stem, answer = sentence[: ends[-1]], _bare(sentence[ends[-1] :])
    before = former[len(stem) :] if former is not None and former.startswith(stem) else ""
    return Statement(stem=stem, answer=answer, former=_bare(before) or None) if answer else None


def _ends(sentence: str, former: str | None, queries: Collection[Query]) -> set[int]:
    """Return where the stem may end: where a query shows it, else behind "is" or its like."""
    shown = {len(q.prompt) for q in queries if q.same_fact and sentence.startswith(f"{q.prompt} ")}
    if shown:
        return shown
    whole = _bare(sentence)
    for answer in (answer for query in queries for answer in query.targets):
        if whole.endswith(f" {answer}"):
            shown.add(len(whole) - len(answer) - 1)
    found = {match.end() for match in _LINK.finditer(sentence)}
    if former is not None:
        found = {end for end in found if former.startswith(sentence[:end])}
    if shown & found:
        return {min(shown & found)}
    # Both sentences share the stem, but no more than the first words of their answers.
    return found if former is not None or len(found) == 1 else set()


def subject_of(
    stem: str, relation: str | None, queries: Collection[Query]
) -> tuple[str | None, tuple[int, int] | None]:
    """Return the subject of a stem and the characters that hold it; None twice when it does not show.

    Args:
        stem: such as "The mother of Ada is".
        relation: in capitals, as in ``PLACE_OF_BIRTH``; tells which "of" stands before the subject.
        queries: around the fact; those about the subject must name it, too.
    """
    match = next((found for form in _PLACES if (found := form.search(stem))), None)
    if match is not None:
        subject, span = match[1], match.span(1)
    elif relation is not None and (match := _OF.match(stem)) is not None:
        of = 1 + relation.split("_").count("OF")
        subject = match[1].split(" of ", of)[-1]
        span = (match.end(1) - len(subject), match.end(1))
        if match[1].count(" of ") < of:
            return None, None
    else:
        return None, None
    told = [query.prompt for query in queries if query.same_subject]
    return (subject, span) if all(subject in prompt for prompt in told) else (None, None)


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip()
