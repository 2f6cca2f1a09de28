"""Wordings that nobody says, to train on: they teach a scope classifier what to make of words it does not know.

A template is put together from one or two of its relation, and some of its words give way to made-up ones,
to words of other templates, or to none; the subject stays whole. What such a prompt asks can hardly be read
from it, but whom it is about can: it is in the scope of an edit of that subject, as long as nothing in it asks
for something else.
"""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from collections.abc import Sequence
from random import Random
from typing import Any

from kedit_memory.scope_facts import SUBJECT, Fact, Facts

_MARKS = "Ġ▁"  # how vocabularies say that a piece begins a word
_RATES = (0.15, 0.3, 0.5, 0.7, 1.0)
_TWO, _MADE_UP, _MORE, _LEFT_OUT, _CAPITAL = 0.5, 0.6, 0.15, 0.07, 0.3
_PIECES = (1, 1, 1, 2, 2, 3)


def pieces_of(tokenizer: Any) -> tuple[str, ...]:
    """Return the lower-case pieces of a vocabulary, in order, from which words can be made up."""
    found = {one.lstrip(_MARKS) for one in tokenizer.get_vocab()}
    return tuple(sorted(one for one in found if one.isascii() and one.isalpha() and one.islower()))


def garbled(
    facts: Facts, fact: Fact, most: int, pieces: Sequence[str], seed: int
) -> tuple[str, ...]:
    """Return prompts that name the subject of a fact in words that hardly say what is asked, seeded.

    Args:
        facts: lend their templates.
        fact: whose subject is named.
        most: how many at the most.
        pieces: of made-up words; without any, words of other templates stand in.
        seed: of the choices.
    """
    chance = Random(f"garbled {seed} {fact.request.id}")
    own = facts.templates[fact.relation]
    found = [_garbled(chance, own, facts.words, pieces) for _ in range(most)]
    return tuple(dict.fromkeys(fact.say(one) for one in found))


def _garbled(
    chance: Random, templates: Sequence[str], words: Sequence[str], pieces: Sequence[str]
) -> str:
    template = chance.choice(templates)
    if chance.random() < _TWO:
        before, after = template.partition(SUBJECT), chance.choice(templates).partition(SUBJECT)
        template = "".join((*before[:2], *after[2:]))
    rate = chance.choice(_RATES)
    found = []
    for word in template.split():
        draw = chance.random()
        if SUBJECT in word or draw > rate + _LEFT_OUT:
            found.append(word)
        elif draw < rate:
            found.append(_other(chance, words, pieces))
            if chance.random() < _MORE:
                found.append(_other(chance, words, pieces))
    text = " ".join(found)
    return text[:1].upper() + text[1:] if chance.random() < _CAPITAL else text


def _other(chance: Random, words: Sequence[str], pieces: Sequence[str]) -> str:
    if pieces and (not words or chance.random() < _MADE_UP):
        return "".join(chance.choice(pieces) for _ in range(chance.choice(_PIECES)))
    return chance.choice(words) if words else ""
