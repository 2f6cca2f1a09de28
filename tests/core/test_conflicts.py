"""Conflicts: requests that cannot all hold are found before the first edit, and settled as asked."""

import random
import sys

import pytest

from kedit_core import EditRequest, KeditError
from kedit_core.conflicts import Settled, normalised, settled
from kedit_core.errors import ConfigError, ConflictError

NORWAY = "The capital of Norway is"
POLICIES = ("first", "last", "newest")


def ask(target, prompt=NORWAY, *paraphrases, true=None):
    return EditRequest(prompt=prompt, target_new=target, target_true=true, paraphrases=paraphrases)


def ids(requests):
    return [request.id for request in requests]


def kinds(found):
    return [decision.kind for decision in found.decisions]


@pytest.mark.parametrize("policy", ["error", *POLICIES])
def test_requests_on_different_questions_are_all_made_as_they_came(policy):
    requests = [ask("Lima", f"The capital of land{n} is") for n in range(5)]
    in_force = [ask("Rome", "The capital of Sweden is")]
    assert settled(requests, in_force, policy) == Settled(requests=requests)
    assert settled([], in_force, policy) == Settled(requests=())


# What is one question


@pytest.mark.parametrize(
    "prompt",
    [
        "the capital of NORWAY is",
        "The  capital\tof\u00a0Norway is ",
        "The capital of Norway is:",
        "The capital of Norway is ...",
        "The capital of Norway is …",
        "\uff34\uff48\uff45 capital of Norway is",  # full-width letters
    ],
)
def test_prompts_are_equal_but_for_case_blanks_character_forms_and_their_end(prompt):
    assert kinds(settled([ask("Rome", prompt), ask("Lima")], [], "last")) == ["contradiction"]
    assert kinds(settled([ask("Rome", prompt)], [ask("Lima")], "last")) == ["contradiction"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The inventor of C# is", "The inventor of C is"),
        ("Who invented C#", "Who invented C"),
        ("The capital of Norway", NORWAY),
        ("The capital of Norwey is", NORWAY),
        ("Is Norway the capital of", "The capital of Norway is"),
        ("?", "!"),
    ],
)
def test_nothing_fuzzier_makes_two_prompts_one_question(one, other):
    assert settled([ask("Rome", one), ask("Lima", other)], [], "error").decisions == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Was ist groß?", "WAS IST GROSS"),
        ("法国的首都是哪里？", "法国的首都是哪里"),
        ("भारत की राजधानी।", "भारत की राजधानी"),
    ],
)
def test_ends_and_cases_of_other_scripts_do_not_count_either(one, other):
    assert normalised(one) == normalised(other)


def test_the_subject_counts_as_it_stands_in_the_prompt():
    marked = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Rome")
    other = EditRequest(prompt="The capital of {} is", subject="Sweden", target_new="Rome")
    assert len(settled([marked, ask("Lima")], [], "first").requests) == 1
    assert len(settled([marked, other], [], "first").requests) == 2


def test_a_prompt_that_another_lists_as_a_paraphrase_is_the_same_question():
    listing = ask("Rome", NORWAY, "Norway is ruled from")
    listed = ask("Lima", "norway is ruled from:")
    for requests, in_force in [
        ([listing, listed], []),
        ([listed, listing], []),
        ([listing], [listed]),
    ]:
        found = settled(requests, in_force, "first")
        assert kinds(found) == ["contradiction"]
        assert "paraphrase" in found.decisions[0].why
    # An edit in force is known without its paraphrases: only what is listed counts.
    assert settled([listed], [listing.without_probes()], "error").decisions == ()


def test_paraphrases_link_requests_through_a_third_one_wherever_that_stands():
    a, c = ask("Rome", "a is"), ask("Lima", "c is")
    link = ask("Rome", "b is", "a is", "C IS")
    for requests in ([a, c, link], [link, a, c], [a, link, c]):
        assert len(settled(requests, [], "first").requests) == 1
    assert len(settled([link, c], [a], "newest").take_out[c.id]) == 1


def test_requests_that_share_a_paraphrase_are_one_question():
    one, other = ask("Rome", "a is", "shared is"), ask("Lima", "b is", "Shared is.")
    assert ids(settled([one, other], [], "last").requests) == [other.id]


# Of what kind a conflict is


def test_another_target_contradicts_and_the_same_one_is_a_duplicate():
    assert kinds(settled([ask("Rome"), ask("Lima")], [], "last")) == ["contradiction"]
    assert kinds(settled([ask("Rome"), ask("ROME.", "the capital of Norway is")], [], "last")) == [
        "duplicate"
    ]
    request = ask("Rome")
    assert kinds(settled([request, request], [], "last")) == ["duplicate"]


def test_an_edit_that_undoes_an_earlier_one_is_a_reversal():
    away, back = ask("Rome", true="Oslo"), ask("oslo")
    assert kinds(settled([away, back], [], "last")) == ["reversal"]
    assert kinds(settled([back], [away], "newest")) == ["reversal"]
    assert kinds(settled([back, away], [], "last")) == ["contradiction"]


# The policies


def test_with_error_the_first_conflict_is_said_the_rest_counted_and_the_way_out_named():
    in_force = [ask("Rome")]
    with pytest.raises(ConflictError) as raised:
        settled([ask("Lima"), ask("Quito"), ask("rome")], in_force, "error")
    assert isinstance(raised.value, KeditError | ValueError)
    text = str(raised.value)
    assert text.startswith(repr(NORWAY))
    for part in ("'Lima'", "an edit in force has 'Rome'", "2 more conflicts", '"newest"'):
        assert part in text
    assert [one.kind for one in raised.value.decisions] == [
        "contradiction",
        "contradiction",
        "duplicate",
    ]
    assert {one.kept for one in raised.value.decisions} == {""}


def test_first_keeps_the_earlier_request_and_what_is_in_force():
    a, b, other = ask("Rome"), ask("Lima"), ask("Lima", "The capital of Sweden is")
    found = settled([a, other, b], [], "first")
    assert ids(found.requests) == [a.id, other.id]
    (decision,) = found.decisions
    assert (decision.request, decision.other, decision.kept) == (b.id, a.id, a.id)
    found = settled([b, other], [a], "first")
    assert ids(found.requests) == [other.id]
    assert found.decisions[0].kept == a.id
    assert found.take_out == {}


def test_last_keeps_the_later_request_and_leaves_the_edit_in_force_below_it():
    a, b = ask("Rome"), ask("Lima")
    found = settled([a, b], [], "last")
    assert ids(found.requests) == [b.id]
    found = settled([b], [a], "last")
    assert (ids(found.requests), found.take_out) == ([b.id], {})
    assert found.decisions[0].kept == b.id
    assert "below" in found.decisions[0].why


def test_newest_takes_the_edit_in_force_out():
    a, b = ask("Rome"), ask("Lima")
    found = settled([b], [a], "newest")
    assert ids(found.requests) == [b.id]
    assert found.take_out == {b.id: (a.id,)}
    assert "taken out" in found.decisions[0].why
    assert settled([a, b], [], "newest").requests == (b,)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_duplicate_of_an_edit_in_force_is_not_made_again(policy):
    a = ask("Rome")
    for again in (a, ask("rome", NORWAY + ":")):
        found = settled([again], [a], policy)
        assert (found.requests, found.take_out) == ((), {})
        assert found.decisions[0].kept == a.id


# Chains


@pytest.mark.parametrize(
    ("policy", "made", "pairs"),
    [
        ("first", 0, [(1, 0), (2, 0)]),
        ("last", 2, [(1, 0), (2, 1)]),
        ("newest", 2, [(1, 0), (2, 1)]),
    ],
)
def test_of_three_requests_on_one_question_one_is_made(policy, made, pairs):
    chain = [ask("Rome"), ask("Lima"), ask("Quito")]
    found = settled(chain, [], policy)
    assert found.requests == (chain[made],)
    names = ids(chain)
    assert [(names.index(one.request), names.index(one.other)) for one in found.decisions] == pairs
    assert {one.kept for one in found.decisions} == {chain[made].id}


@pytest.mark.parametrize("policy", ["last", "newest"])
def test_a_chain_that_comes_back_to_what_is_in_force_changes_nothing(policy):
    a = ask("Rome", true="Oslo")
    found = settled([ask("Lima", true="Rome"), ask("Rome")], [a], policy)
    assert (found.requests, found.take_out) == ((), {})
    assert kinds(found) == ["contradiction", "duplicate", "reversal"]
    assert {one.kept for one in found.decisions} == {a.id}


def test_newest_takes_out_all_that_is_in_force_on_the_question():
    below, above, new = ask("Rome"), ask("Lima"), ask("Quito")
    found = settled([new], [below, above], "newest")
    assert found.take_out == {new.id: (below.id, above.id)}
    assert len(found.decisions) == 2


def test_a_request_in_force_below_a_later_one_is_made_anew_on_top_of_it():
    below, above = ask("Rome"), ask("Lima")
    found = settled([below], [below, above], "last")
    assert found.requests == (below,)
    assert found.take_out == {below.id: (below.id,)}
    assert settled([above], [below, above], "last").requests == ()
    assert settled([below], [below, above], "first").requests == ()


def test_what_was_settled_in_the_model_long_ago_is_no_conflict_now():
    in_force = [ask("Rome"), ask("Lima")]
    assert settled([ask("Rome", "The capital of Sweden is")], in_force, "error").decisions == ()


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match="'oldest'"):
        settled([], [], "oldest")


# Against the definition, request by request


def brute_force(everyone):
    """Return the groups of places that ask one question, by joining whatever is linked until nothing is."""
    groups = [
        ({normalised(text) for text in (one.prompt, *one.paraphrases)}, [place])
        for place, one in enumerate(everyone)
    ]
    joined = True
    while joined:
        joined = False
        for one in groups:
            for other in groups:
                if one is not other and one[0] & other[0]:
                    groups.remove(other)
                    one[0].update(other[0])
                    one[1].extend(other[1])
                    joined = True
                    break
            if joined:
                break
    return [sorted(places) for _, places in groups]


@pytest.mark.parametrize("seed", range(60))
def test_each_question_has_one_answer_however_requests_are_linked(seed):
    luck = random.Random(seed)
    words = [f"q{n} is" for n in range(12)]

    def some(count):
        return [
            ask(
                luck.choice(["Rome", "Lima", "Oslo"]),
                luck.choice(words),
                *luck.sample(words, luck.choice([0, 0, 1, 2])),
            )
            for _ in range(count)
        ]

    in_force = [one.without_probes() for one in some(4)]
    in_force = list({one.id: one for one in in_force}.values())
    requests = some(6)
    everyone = [*in_force, *requests]
    for policy in POLICIES:
        found = settled(requests, in_force, policy)
        made = {id(request) for request in found.requests}
        for group in brute_force(everyone):
            held = [everyone[place] for place in group if place < len(in_force)]
            new = [everyone[place] for place in group if place >= len(in_force)]
            own = [request for request in new if id(request) in made]
            if not new:
                continue
            wanted = ([*held[-1:], *new][0] if policy == "first" else new[-1]).target_new
            holds = own[0] if own else held[-1]
            assert holds.target_new == wanted
            assert len(own) <= 1
            out = found.take_out.get(own[0].id, ()) if own else ()
            if policy == "newest" and own:
                assert list(out) == ids(held)
            left = [one.id for one in held if one.id not in out]
            assert not own or own[0].id not in left, "it would be in force twice"
            decided = {name for one in found.decisions for name in (one.request, one.other)}
            assert {one.id for one in new if one not in own} | set(out) <= decided


def test_ten_thousand_requests_are_each_normalised_a_few_times_only(monkeypatch):
    requests = [
        ask(f"city{n % 3}", f"question {n // 2} is", f"wording {n} is") for n in range(10_000)
    ]
    module, calls = sys.modules["kedit_core.conflicts"], []
    monkeypatch.setattr(module, "normalised", lambda text: calls.append(text) or normalised(text))
    found = settled(requests, requests[:1000], "newest")
    assert len(found.decisions) > 5000
    assert len(calls) < 10 * len(requests)
