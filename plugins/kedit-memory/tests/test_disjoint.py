"""Nobody trains on the test: what counts as the same fact, and what does not."""

import pytest

from kedit_core import EditRequest
from kedit_core.errors import RequestError
from kedit_memory.disjoint import check_disjoint, normal


def capital(**changes):
    return EditRequest(
        **{
            "prompt": "The capital of {} is",
            "subject": "Austria",
            "target_new": "Oslo",
            "target_true": "Vienna",
            "paraphrases": ("Austria is ruled from",),
            **changes,
        }
    )


@pytest.mark.parametrize(
    "judged",
    [
        capital(),
        capital(target_new="Lima"),
        capital(prompt="{} is ruled from", paraphrases=()),
        capital(prompt="The seat of {} is", subject="AUSTRIA", paraphrases=()),
        capital(prompt="The capital of  {}, is", target_true=None, paraphrases=()),
        capital(prompt="Say where {} is ruled", paraphrases=("The capital of Austria is",)),
    ],
    ids=[
        "the same request",
        "another new answer",
        "a paraphrase as the prompt",
        "the same old answer in other words",
        "other marks and blanks",
        "the prompt as a paraphrase",
    ],
)
def test_the_same_fact_is_found_whatever_it_looks_like(judged):
    with pytest.raises(RequestError, match="1 of 1 facts to train on are to be judged too"):
        check_disjoint([capital()], [judged])


@pytest.mark.parametrize(
    "judged",
    [
        capital(subject="Peru", target_true="Lima", paraphrases=("Peru is ruled from",)),
        capital(prompt="The river of {} is", target_true="Danube", paraphrases=()),
    ],
    ids=["another subject", "another relation"],
)
def test_other_facts_are_no_reason_to_refuse(judged):
    check_disjoint([capital()], [judged])


def test_relations_with_names_may_share_an_answer():
    born, died = (
        capital(
            prompt=f"{{}} {word} in",
            subject="Mozart",
            paraphrases=(),
            extra={"relation": word},
        )
        for word in ("was born", "died")
    )
    check_disjoint([born], [died])
    with pytest.raises(RequestError, match="are to be judged too"):
        check_disjoint([born], [capital(prompt="{}'s town is", subject="Mozart", paraphrases=())])


def test_an_error_shows_a_few_and_counts_the_others():
    facts = [capital(subject=name, paraphrases=()) for name in ("Peru", "Chile", "Mali", "Fiji")]
    with pytest.raises(RequestError, match=r"4 of 4 .*'The capital of Peru is'.* and 1 more"):
        check_disjoint(facts, facts)


@pytest.mark.parametrize(
    ("text", "same"),
    [("  The  CAPITAL, of {} is:", "the capital of {} is"), ("Ｏｓｌｏ", "oslo"), ("…", "")],
)
def test_what_makes_no_difference_is_taken_out(text, same):
    assert normal(text) == same
