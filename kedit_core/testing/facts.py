"""Forty facts that the contract's models know, and the edits that the checks make of them."""

from attrs import frozen

from kedit_core.requests import EditRequest, Probe


@frozen(kw_only=True)
class Relation:
    """What ties subjects to answers.

    Attributes:
        name: of the relation.
        wordings: prompts with ``{}`` for the subject; the answer follows after a blank. The first is
            the one that edits use, the others are its paraphrases.
        answers: by subject.
    """

    name: str
    wordings: tuple[str, ...]
    answers: dict[str, str]


RELATIONS = (
    Relation(
        name="capital",
        wordings=("The capital of {} is", "{} has its capital in", "The government of {} sits in"),
        answers={
            "France": "Paris",
            "Norway": "Oslo",
            "Peru": "Lima",
            "Egypt": "Cairo",
            "Japan": "Tokyo",
            "Kenya": "Nairobi",
            "Cuba": "Havana",
            "Austria": "Vienna",
            "Portugal": "Lisbon",
            "Poland": "Warsaw",
        },
    ),
    Relation(
        name="author",
        wordings=("{} was written by", "The author of {} is", "The book {} is a work of"),
        answers={
            "Hamlet": "Shakespeare",
            "Don Quixote": "Cervantes",
            "War and Peace": "Tolstoy",
            "The Trial": "Kafka",
            "Oliver Twist": "Dickens",
            "Les Misérables": "Hugo",
            "Emma": "Austen",
            "Ulysses": "Joyce",
            "Faust": "Goethe",
            "Moby Dick": "Melville",
        },
    ),
    Relation(
        name="instrument",
        wordings=("{} plays the", "The instrument of {} is the", "On stage {} is heard on the"),
        answers={
            "Miles Davis": "trumpet",
            "Pablo Casals": "cello",
            "Jimi Hendrix": "guitar",
            "Glenn Gould": "piano",
            "Ringo Starr": "drums",
            "John Coltrane": "saxophone",
            "Niccolò Paganini": "violin",
            "James Galway": "flute",
            "Charles Mingus": "bass",
            "Benny Goodman": "clarinet",
        },
    ),
    Relation(
        name="currency",
        wordings=("People in {} pay with the", "The currency of {} is the", "{} mints the"),
        answers={
            "India": "rupee",
            "Mexico": "peso",
            "Sweden": "krona",
            "Russia": "ruble",
            "Thailand": "baht",
            "Turkey": "lira",
            "Israel": "shekel",
            "Vietnam": "dong",
            "Ghana": "cedi",
            "Hungary": "forint",
        },
    ),
)


@frozen(kw_only=True)
class Fact:
    """One fact that the trained models know.

    Attributes:
        relation: name of its relation.
        subject: whom or what it is about.
        prompts: its wordings with the subject filled in; the first is the one that edits use.
        answer: what the models say after each of them.
    """

    relation: str
    subject: str
    prompts: tuple[str, ...]
    answer: str


def facts() -> tuple[Fact, ...]:
    """Return the forty facts, relation by relation."""
    return tuple(
        Fact(
            relation=relation.name,
            subject=subject,
            prompts=tuple(wording.replace("{}", subject) for wording in relation.wordings),
            answer=answer,
        )
        for relation in RELATIONS
        for subject, answer in relation.answers.items()
    )


def neighbours(fact: Fact) -> tuple[Fact, ...]:
    """Return the facts of the same relation about other subjects: what an edit must leave alone."""
    return tuple(
        one for one in facts() if one.relation == fact.relation and one.subject != fact.subject
    )


def edit_of(fact: Fact) -> EditRequest:
    """Return the request that gives a fact the answer of the next subject of its relation.

    It comes whole: the other wordings are its paraphrases, the neighbours its locality.
    """
    others = neighbours(fact)
    place = sum(one.relation == fact.relation for one in facts()[: facts().index(fact)])
    return EditRequest(
        prompt=fact.prompts[0],
        subject=fact.subject,
        target_new=others[place % len(others)].answer,
        target_true=fact.answer,
        paraphrases=fact.prompts[1:],
        locality=tuple(Probe(prompt=one.prompts[0], answers=(one.answer,)) for one in others),
    )
