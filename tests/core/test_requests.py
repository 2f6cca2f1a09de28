import copy
import pickle
import subprocess
import sys

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from kedit_core.errors import RequestError
from kedit_core.requests import EditBatch, EditRequest, Probe, joiner_for

PROBE = Probe(prompt="The capital of Italy is", answers=("Rome",))


def capital(**changes):
    asked = {"prompt": "{} is the capital of", "subject": "Paris", "target_new": "Italy"}
    return EditRequest(**{**asked, **changes})


@pytest.mark.parametrize(
    ("prompt", "subject", "text", "span"),
    [
        ("{} lies in", "Rome", "Rome lies in", (0, 4)),
        ("The city of {} lies in", "Rome", "The city of Rome lies in", (12, 16)),
        ("Rome lies in", "Rome", "Rome lies in", (0, 4)),
        ("Rome, yes Rome, lies in", "Rome", "Rome, yes Rome, lies in", (10, 14)),
        ("Rome, yes {}, lies in", "Rome", "Rome, yes Rome, lies in", (10, 14)),
        ("{x} of {0} is {}", "f", "{x} of {0} is f", (14, 15)),
        ("{} is", "a{}b", "a{}b is", (0, 4)),
        ("東京は{}にある", "日本", "東京は日本にある", (3, 5)),
    ],
)
def test_the_subject_is_found_where_it_is_marked_or_else_where_it_stands_last(
    prompt, subject, text, span
):
    request = EditRequest(prompt=prompt, subject=subject, target_new="x")
    assert (request.prompt, request.subject_span) == (text, span)
    assert request.prompt[slice(*request.subject_span)] == subject


def test_a_span_chooses_among_several_occurrences():
    request = EditRequest(prompt="a b a", subject="a", subject_span=[0, 1], target_new="x")
    assert request.subject_span == (0, 1)


def test_a_mark_without_a_subject_is_refused_and_other_braces_are_text():
    with pytest.raises(RequestError, match=r"marks a subject with \{\}, but none is given"):
        EditRequest(prompt="def f(): return {}", target_new="x")
    request = EditRequest(prompt="def f(): return {0}", target_new="x")
    assert (request.prompt, request.subject_span) == ("def f(): return {0}", None)
    spanned = EditRequest(prompt="def f(): {}", subject="f", subject_span=(4, 5), target_new="x")
    assert spanned.prompt == "def f(): {}"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"target_new": "  "}, "target_new of .* is empty"),
        ({"target_true": ""}, "target_true of .* is empty"),
        ({"paraphrases": ["fine", ""]}, "a paraphrase of .* is empty"),
        ({"subject": ""}, "subject of .* is empty"),
        ({"prompt": "It is the capital of"}, "'Paris' is not in the prompt"),
        ({"prompt": "{} and {} are"}, "marks its subject with {} 2 times"),
        ({"subject": None, "subject_span": (0, 5)}, "comes without a subject"),
        ({"prompt": "Paris is", "subject_span": (1, 6)}, "holds 'aris ', not 'Paris'"),
        ({"prompt": "It is Paris", "subject_span": (-5, 99)}, "reaches beyond"),
        ({"prompt": "It is Paris.", "subject_span": (-6, -1)}, "reaches beyond"),
        ({"prompt": "It is Paris", "subject_span": (6, 11, 0)}, "is no pair of positions"),
        ({"target_new": "\udcff"}, "half a surrogate pair"),
        ({"prompt": "\ud83d {} is"}, "half a surrogate pair"),
    ],
)
def test_a_request_that_means_nothing_is_refused_in_one_sentence(changes, complaint):
    with pytest.raises(RequestError, match=complaint) as refused:
        capital(**changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("prompt", "target", "joiner"),
    [
        ("It is", "Rome", " "),
        ("It is ", "Rome", ""),
        ("It is\n", "Rome", ""),
        ("首都は", "ローマ", ""),
        ("首都は", "羅馬", ""),
        ("เมืองหลวงคือ", "โรม", ""),
        ("수도는", "로마", " "),
        ("It is", "42", " "),
    ],
)
def test_a_target_is_joined_as_its_script_joins_words(prompt, target, joiner):
    assert joiner_for(prompt, target) == joiner
    assert EditRequest(prompt=prompt, target_new=f" {target}").joiner == joiner


def test_targets_lose_their_leading_blank_unless_it_is_what_joins_them():
    usual = capital(target_new=" Italy", target_true=" France")
    glued = capital(target_new=" Italy", target_true=" France", joiner="")
    assert (usual.joiner, usual.target_new, usual.target_true) == (" ", "Italy", "France")
    assert (glued.joiner, glued.target_new, glued.target_true) == ("", " Italy", " France")


def test_an_id_says_what_was_asked_and_nothing_else():
    same = [
        capital(),
        capital(prompt="Paris is the capital of"),
        capital(target_new="  Italy"),
        capital(paraphrases=["Paris rules"], locality=(PROBE,), portability=(PROBE,)),
        capital(target_true="France", extra={"case": 7}),
        capital().without_probes(),
    ]
    other = [
        capital(target_new="Spain"),
        capital(joiner=": "),
        capital(subject=None, prompt="Paris is the capital of"),
        EditRequest(prompt="P is the capital of", subject="P", target_new="Italy"),
    ]
    assert len({request.id for request in same}) == 1
    assert len({request.id for request in [*same, *other]}) == 1 + len(other)


def test_an_id_is_the_same_in_another_process():
    made = (
        "from kedit_core.requests import EditRequest as R;"
        "print(R(prompt='{} is the capital of', subject='Paris', target_new='Italy').id)"
    )
    said = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == capital().id


def test_a_method_never_sees_what_the_edit_is_judged_by():
    request = capital(
        paraphrases=["Paris rules"], locality=[PROBE], portability=[PROBE], extra={"a": 1}
    )
    assert request.without_probes() == capital(extra={"a": 1})


def test_requests_are_values_that_hash_copy_pickle_and_evolve():
    request = capital(locality=[PROBE], extra={"tags": ["a", "b"]})
    for again in (copy.deepcopy(request), pickle.loads(pickle.dumps(request)), evolve(request)):
        assert again == request
        assert again.id == request.id
    assert len({request, evolve(request), evolve(request, target_new="Spain")}) == 2
    with pytest.raises(FrozenInstanceError):
        request.prompt = "something else"


def test_what_a_request_was_made_from_can_change_without_changing_it():
    extra, paraphrases = {"a": 1}, ["Paris rules"]
    request = capital(extra=extra, paraphrases=paraphrases)
    extra["a"] = 2
    paraphrases.append("more")
    assert (request.extra, request.paraphrases) == ({"a": 1}, ("Paris rules",))


def test_one_text_stands_for_a_list_of_one():
    assert Probe(prompt="x", answers="Rome").answers == ("Rome",)
    assert capital(paraphrases="Paris rules").paraphrases == ("Paris rules",)
    assert EditBatch(requests=[], remove="abc").remove == ("abc",)


@pytest.mark.parametrize("probe", [{"prompt": " ", "answers": "a"}, {"prompt": "x", "answers": []}])
def test_a_probe_needs_a_prompt_and_an_answer(probe):
    with pytest.raises(RequestError):
        Probe(**probe)


def test_a_probe_with_a_blank_alias_is_refused_since_every_answer_starts_with_it():
    with pytest.raises(RequestError, match="has no answer"):
        Probe(prompt="x", answers=("Rome", ""))


def test_a_batch_takes_any_iterable_of_requests_in_order():
    requests = (capital(target_new=name) for name in ("Italy", "Spain"))
    assert [request.target_new for request in EditBatch(requests=requests).requests] == [
        "Italy",
        "Spain",
    ]


def test_a_paraphrase_may_mark_the_subject_too():
    request = EditRequest(
        prompt="{} is in", subject="Rome", target_new="Peru", paraphrases=("Where {} lies is",)
    )
    assert request.paraphrases == ("Where Rome lies is",)
    again = evolve(request, paraphrases=("a set {}",))
    assert again.paraphrases == ("a set {}",)
