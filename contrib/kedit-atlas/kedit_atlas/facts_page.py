"""A page of 100 seeded facts for reading; ``make docs`` writes it."""

# ruff: noqa: S311

from random import Random

from kedit_atlas.world import SHARES, Fact, load_world

FACTS_SHOWN = 100


def facts_page() -> str:
    """The page as Markdown: what the world holds, and 100 facts with one trained sentence each."""
    world = load_world()
    rng = Random("facts page")
    shown = sorted(
        rng.sample(world.facts, FACTS_SHOWN), key=lambda fact: (fact.relation.name, fact.subject)
    )
    sets = ", ".join(f"{len(world.of(name)):,} {name}" for name in SHARES)
    head = (
        "# One hundred facts of the atlas\n\n"
        f"The atlas holds {len(world.facts):,} facts over {len(world.relations)} relations: "
        f"{sets}. These hundred were drawn by a fixed seed, each with a sentence that the "
        "embedded models were trained on.\n\n"
        "| Relation | Set | Subject | Object | A sentence of the training text |\n"
        "| --- | --- | --- | --- | --- |\n"
    )
    return head + "".join(_row(fact, rng) for fact in shown)


def _row(fact: Fact, rng: Random) -> str:
    sentence = f"{rng.choice(fact.openings)} {fact.object}."
    cells = (f"`{fact.relation.name}`", fact.set, fact.subject, fact.object, sentence)
    return f"| {' | '.join(cells)} |\n"
