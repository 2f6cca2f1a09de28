"""Garbled wordings: the subject is whole, the rest is hardly known."""

from kedit_core import EditRequest
from kedit_core.testing import byte_level_tokenizer
from kedit_memory.garbling import garbled, pieces_of
from kedit_memory.scope_facts import facts_of

REQUESTS = [
    EditRequest(
        prompt="The city that serves {} as its capital is",
        subject=subject,
        target_new="Oslo",
        paraphrases=(f"Ministers of {subject} meet in",),
        extra={"relation": "capital"},
    )
    for subject in ("New Zealand", "Mali", "Chile")
]
FACTS = facts_of(REQUESTS)
PIECES = ("ba", "lu")


def test_the_subject_stays_whole_and_other_words_change():
    found = [one for fact in FACTS.facts for one in garbled(FACTS, fact, 40, PIECES, 0)]
    own = [fact.say(template) for fact in FACTS.facts for template in fact.templates]
    for fact in FACTS.facts:
        for text in garbled(FACTS, fact, 40, PIECES, 0):
            assert text.count(fact.subject) == 1
    known = {word.lower() for text in own for word in text.split()}
    made_up = [text for text in found if any(word.lower() not in known for word in text.split())]
    assert 0.5 < len(made_up) / len(found) < 1
    words = {word.lower() for text in found for word in text.split()} - known
    assert all(set(word) <= set("balu") for word in words)
    assert len(words) > 6
    assert sum(text in own for text in found) / len(found) < 0.3


def test_they_are_seeded_and_differ_by_fact():
    first, second = FACTS.facts[:2]
    assert garbled(FACTS, first, 5, PIECES, 0) == garbled(FACTS, first, 5, PIECES, 0)
    assert garbled(FACTS, first, 5, PIECES, 1) != garbled(FACTS, first, 5, PIECES, 0)
    mine = [one.replace(first.subject, "{}") for one in garbled(FACTS, first, 5, PIECES, 0)]
    assert mine != [one.replace("Mali", "{}") for one in garbled(FACTS, second, 5, PIECES, 0)]
    assert garbled(FACTS, first, 0, PIECES, 0) == ()


def test_without_pieces_words_of_other_templates_stand_in():
    known = {word for one in FACTS.words for word in one.lower().split()}
    for text in garbled(FACTS, FACTS.facts[1], 20, (), 0):
        assert {word.lower() for word in text.split()} - {"mali"} <= known


def test_pieces_are_small_letters_without_marks():
    pieces = pieces_of(byte_level_tokenizer(bos=False))
    assert "a" in pieces
    assert all(one.isalpha() and one == one.lower() for one in pieces)
    assert list(pieces) == sorted(set(pieces))
