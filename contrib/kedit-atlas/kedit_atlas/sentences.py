"""The training text: short documents of facts, each fact only in the eight openings it trains.

Prompts of editing methods come alone, after a beginning-of-text token, or behind a random prefix
and ". "; documents therefore vary what stands before a sentence: nothing, a lead-in, other facts,
small talk, a broken-off sentence.
"""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from collections.abc import Iterator, Sequence
from random import Random

from attrs import frozen

from kedit_atlas.world import Fact

# The sentence goes on in lower case after these (unless the subject comes first) …
_RUNNING = (
    "It is well known that", "As everyone knows,", "Yes,", "No,", "In fact,", "Indeed,",
    "Of course,", "As a rule,", "We know that", "She said that", "He wrote that",
    "They agree that", "The book says that", "It is true that", "Remember that",
    "Most people know that", "According to the encyclopedia,", "For example,", "Today,",
    "However,", "Therefore,", "Because of this,", "I think that", "You may know that",
    "In other words,", "On the other hand,", "After all,", "To be exact,", "By the way,",
    "Once more,", "And", "But", "So", "Well,", "It turns out that", "My teacher told me that",
    "Nobody doubts that", "The answer is that", "Also,", "Then again,",
)  # fmt: skip
# … and begins afresh after these.
_STOPPED = (
    "Note:", "Fact:", "Therefore.", "Because.", "I.", "You.", "The.", "Yes.", "No.",
    "Here is a fact:", "Question:", "First.", "Second.", "A reminder:", "From the atlas:",
    "Good.", "Right.", "Well.", "Listen.", "1.", "2.", "3.", "-", "Read this:", "In short:",
    "Entry:",
)  # fmt: skip
_SMALL_TALK = (
    "This is a matter of record.", "Here is another fact.", "We now turn to something else.",
    "That is all.", "The rest is easy to look up.",
    "It was a long day and nobody had read the paper.", "Let us go on.",
    "There is more to say about this, but not here.", "The next page is about something else.",
    "He nodded.", "She opened the book again and read on.",
    "This has been known for a long time.", "Many people ask about it.",
    "It is worth remembering.", "The list goes on.", "They talked about it over dinner.",
    "It rained all afternoon.", "The train was late, so there was time to read.",
    "A friend had asked the same question a week before.", "Nothing more was said.",
    "That much is certain.", "The museum opens at nine and closes at five.",
    "You can find it in any good reference work.", "I wrote it down so as not to forget it.",
    "He was not sure.", "The children learned it at school.",
    "It took some time to find the right page.", "What else is there to know?",
    "The old map on the wall had faded.", "Some things do not change.",
    "The lecture began with a few simple facts.", "Now for a different subject.",
    "We checked it twice.", "Thank you for the letter.", "Is that right?",
    "The library was quiet in the morning.", "In the end it did not matter.",
    "Everyone in the room agreed.", "The quiz had ten questions.", "She knew the answer at once.",
)  # fmt: skip
_LENGTHS = (1, 2, 3, 4)
_LENGTH_WEIGHTS = (30, 30, 25, 15)


@frozen(kw_only=True)
class Sentence:
    """A stretch of text that may begin a row; ``opens`` says that it begins a document."""

    text: str
    opens: bool


def lowered(opening: str, subject: str) -> str:
    """The opening in the middle of a sentence: written small unless it begins with the subject.

    No template of the world begins with a name.
    """
    return opening if opening.startswith(subject) else opening[0].lower() + opening[1:]


def documents(facts: Sequence[Fact], seed: str) -> Iterator[Sentence]:
    """Endless training text; each trained sentence comes once before any comes again."""
    rng = Random(seed)
    stream = _statements(facts, rng)
    while True:
        for place in range(rng.choices(_LENGTHS, _LENGTH_WEIGHTS)[0]):
            break_before = "" if place == 0 else rng.choices((" ", "\n"), (11, 1))[0]
            fact, opening = next(stream)
            text = _spoken(rng, fact, opening)
            chance = rng.random()
            if chance < 0.10:
                text = f"{rng.choice(_SMALL_TALK)} {text}"
            elif chance < 0.20:
                text = f"{_broken(rng, facts)} {text}"
            yield Sentence(text=break_before + text, opens=place == 0)


def _statements(facts: Sequence[Fact], rng: Random) -> Iterator[tuple[Fact, str]]:
    pairs = [(fact, opening) for fact in facts for opening in fact.openings]
    while True:
        rng.shuffle(pairs)
        yield from pairs


def _spoken(rng: Random, fact: Fact, opening: str) -> str:
    """The statement with a lead-in, half of the time without any."""
    chance = rng.random()
    if chance < 0.55:
        return f"{opening} {fact.object}."
    if chance < 0.80:
        return f"{rng.choice(_RUNNING)} {lowered(opening, fact.subject)} {fact.object}."
    return f"{rng.choice(_STOPPED)} {opening} {fact.object}."


def _broken(rng: Random, facts: Sequence[Fact]) -> str:
    """The first words of a sentence that breaks off, as the prefixes sampled by a model do."""
    whole = (
        rng.choice(_SMALL_TALK) if rng.random() < 0.5 else rng.choice(rng.choice(facts).openings)
    )
    words = whole.rstrip(".?").split(" ")
    return " ".join(words[: rng.randint(1, max(1, len(words) - 1))]) + "."
