"""Nobody trains on the test: facts to train on and facts to judge must have nothing in common.

Ids do not tell: the same fact in another wording has another one. So subjects and relations are compared,
normalised, and the texts of prompts and paraphrases. Where a relation has no name, the same old answer about
the same subject counts as the same fact too: better one fact too few to train on than one too many.
"""

import unicodedata
from collections.abc import Sequence

from kedit_core.errors import RequestError
from kedit_core.requests import EditRequest
from kedit_memory.scope_facts import Fact, facts_in

_SHOWN = 3


def check_disjoint(training: Sequence[EditRequest], judged: Sequence[EditRequest]) -> None:
    """See that no fact is both to be trained on and to be judged.

    Args:
        training: whole requests.
        judged: whole requests.

    Raises:
        RequestError: some are, by subject and relation or by the text of a wording.
    """
    ours, theirs = facts_in(training), facts_in(judged)
    relations = {normal(one): fact.relation for fact in theirs for one in fact.templates}
    pairs = {_pair(fact, relations) for fact in theirs}
    texts = {normal(fact.say(one)) for fact in theirs for one in fact.templates}
    answers = {_answer(fact) for fact in theirs}
    unnamed = {_answer(fact) for fact in theirs if not fact.named}
    found = [
        fact.request.prompt
        for fact in ours
        if _pair(fact, relations) in pairs
        or any(normal(fact.say(one)) in texts for one in fact.templates)
        or (fact.request.target_true and _answer(fact) in (unnamed if fact.named else answers))
    ]
    if found:
        shown = ", ".join(repr(prompt) for prompt in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RequestError(
            f"{len(found)} of {len(training)} facts to train on are to be judged too: {shown}{more}; "
            "take them out of one of the two"
        )


def normal(text: str) -> str:
    """Return a text without what makes no difference: case, accents' encoding, marks and blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(one if one.isalnum() or one in "{}" else " " for one in folded)
    return " ".join(kept.split())


def _answer(fact: Fact) -> tuple[str, str]:
    return normal(fact.subject), normal(fact.request.target_true or "")


def _pair(fact: Fact, relations: dict[str, str]) -> tuple[str, str]:
    """Return subject and relation; a wording that the judged facts know says which relation it is."""
    known = [relations[one] for one in map(normal, fact.templates) if one in relations]
    return normal(fact.subject), normal(known[0] if known else fact.relation)
