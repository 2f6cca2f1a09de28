"""Every metric against numbers worked out by hand.

Most tests judge a model that is a table: after each word, the probabilities of the next one. An
edit puts other numbers into the table, so that every score can be told without a computer.
"""

import math
import random
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kedit_core import (
    Applied,
    Delta,
    Dense,
    Editor,
    EditRequest,
    MethodInfo,
    Plugins,
    Probe,
    Score,
    SideMemory,
    TensorCache,
    hookimpl,
)
from kedit_core.baseline import Baseline
from kedit_core.errors import ConfigError, RequestError
from kedit_core.metrics import AXES, KNOWN, PROTOCOLS
from kedit_core.model_metrics import ngram_entropy

TEXT = "<unk> <end> Rome Paris Oslo New York is was speaks lies in sure turn open so"
WORDS = TEXT.split()
SURE = 1 - 1e-12


def _row(likely):
    """Return the probabilities of all words; what is not said to be likely shares the rest."""
    rest = (1 - sum(likely.values())) / (len(WORDS) - len(likely))
    return torch.tensor([likely.get(word, rest) for word in WORDS], dtype=torch.float64)


def _head(rows):
    """Return the output matrix (words, words) that makes the model say ``rows`` after each word."""
    table = torch.stack([_row(rows.get(word, {"<end>": 0.5})) for word in WORDS])
    return table.log().T / 4  # 4 is what the final norm makes of a one-hot row of 16


def _speaker(rows):
    """Return a llama whose layers add nothing: its embedding is one-hot, its head the table."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=0.0,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(16))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(_head(rows))
    return model


def _rewriter(rows):
    """Return a method that puts ``rows`` into the table, whatever it is asked for."""
    module = ModuleType("rewriter")

    @hookimpl
    def method_info():
        return MethodInfo(name="rewriter", summary="fake", kind="weights")

    @hookimpl
    def compute_delta(model, batch, weights):
        update = _head(rows) - weights.base_of("lm_head.weight")
        part = Dense(weight="lm_head.weight", update=update)
        return Delta(method="rewriter", requests=batch.requests, parts=[part])

    module.method_info, module.compute_delta = method_info, compute_delta
    return module


@pytest.fixture(scope="module")
def words():
    rules = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}turn {{ m['content'] }} open {% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, unk_token="<unk>", eos_token="<end>", chat_template=template
    )


@pytest.fixture
def speaking(words, tmp_path):
    """Return what opens an editor on a table; with ``after`` an edit is in force that makes it that."""

    def build(before, after=None, *others, chat=False, edited=True):
        plugins = Plugins()
        for module in (_rewriter(before | (after or {})), *others):
            plugins.register(module)
        editor = Editor(
            _speaker(before),
            words,
            "rewriter",
            plugins=plugins,
            cache=TensorCache(tmp_path / "cache"),
            chat=chat,
        )
        if after is not None and edited:
            editor.edit(EDIT)
        return editor

    return build


@pytest.fixture
def listener():
    """Return a method whose memory only listens."""
    module = ModuleType("listener")

    @hookimpl
    def method_info():
        return MethodInfo(name="listener", summary="fake", kind="side-memory")

    @hookimpl
    def compute_delta(batch):
        part = SideMemory(at="", tensors={})
        return Delta(method="listener", requests=batch.requests, parts=[part])

    @hookimpl
    def apply_delta(delta):
        return Applied(lambda: None)

    module.method_info, module.compute_delta, module.apply_delta = (
        method_info,
        compute_delta,
        apply_delta,
    )
    return module


EDIT = EditRequest(prompt="so is", target_new="Rome")


def _asked(**changes):
    return EditRequest(**{"prompt": "in is", "target_new": "Rome", **changes})


def _value(editor, metric, request, **options):
    means = editor.evaluate(request, {metric: options}).means()
    return means[metric]


# All protocols on all axes.

EVERYWHERE = {
    "is": {"Rome": 0.6, "Paris": 0.1},
    "was": {"Paris": 0.5, "Rome": 0.3},
    "Paris": {"Rome": SURE},
    "speaks": {"Oslo": 0.5, "Rome": 0.2},
    "lies": {"Rome": 0.5, "Paris": 0.4},
}
ON_EVERY_AXIS = EditRequest(
    prompt="in is",
    target_new="Rome",
    target_true="Paris",
    paraphrases=("in was",),
    locality=(Probe(prompt="in speaks", answers="Oslo"),),
    portability=(Probe(prompt="in lies", answers="Paris"),),
)
EXPECTED = {
    "reliability": {
        "exact": 1.0,
        "contains": 1.0,
        "token": 1.0,
        "preference": 1.0,
        "probability": 0.6,
    },
    "generalization": {
        "exact": 0.0,
        "contains": 1.0,
        "token": 0.0,
        "preference": 0.0,
        "probability": 0.3,
    },
    "locality": {
        "exact": 1.0,
        "contains": 1.0,
        "token": 1.0,
        "preference": 1.0,
        "probability": 0.5,
    },
    "portability": {"exact": 0.0, "contains": 0.0, "token": 0.0, "probability": 0.4},
}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_judges_the_prompts_of_its_axis(speaking, axis, protocol):
    metric = f"{axis}.{protocol}"
    report = speaking(EVERYWHERE).evaluate(ON_EVERY_AXIS, [metric])
    expected = {metric: EXPECTED[axis][protocol]} if protocol in EXPECTED[axis] else {}
    assert report.means() == pytest.approx(expected, abs=1e-12)
    assert report.missing == ({} if expected else {metric: 1})


def test_without_a_wish_exact_match_is_judged_on_all_axes(speaking):
    means = speaking(EVERYWHERE).evaluate(ON_EVERY_AXIS).means()
    assert means == {f"{axis}.exact": EXPECTED[axis]["exact"] for axis in AXES}


def test_metrics_judged_together_are_those_judged_alone(speaking):
    names = [f"{axis}.{protocol}" for axis in AXES for protocol in PROTOCOLS]
    editor = speaking(EVERYWHERE, {"speaks": {"Oslo": 0.1, "Rome": 0.8}})
    names += ["locality.unchanged", "locality.kl", "drift"]
    together = editor.evaluate(ON_EVERY_AXIS, names)
    alone = [editor.evaluate(ON_EVERY_AXIS, name) for name in names]
    assert together.means() == {k: v for report in alone for k, v in report.means().items()}
    assert together.missing == {k: v for report in alone for k, v in report.missing.items()}


def test_a_score_is_the_mean_over_the_prompts_of_a_request(speaking):
    rows = {"is": {"Rome": 0.6}, "was": {"Rome": 0.2, "Oslo": 0.4}, "lies": {"Rome": 0.9}}
    asked = _asked(paraphrases=("in is", "so was", "in lies"))
    assert _value(speaking(rows), "generalization.exact", asked) == pytest.approx(2 / 3)
    assert _value(speaking(rows), "generalization.probability", asked) == pytest.approx(1.7 / 3)


def test_a_request_with_many_probes_weighs_as_much_as_one_with_few(speaking):
    right, wrong = (
        Probe(prompt="in is", answers="Rome"),
        Probe(prompt="in was", answers="Rome"),
    )
    editor = speaking({"is": {"Rome": 0.9}})
    many = _asked(prompt="so is", locality=(wrong, wrong, wrong))
    few = _asked(locality=(right,))
    report = editor.evaluate([many, few], ["locality.exact"])
    assert {score.request: score.value for score in report.scores} == {many.id: 0.0, few.id: 1.0}
    assert report.means() == {"locality.exact": 0.5}


# exact and contains.

NEW_YORK = {"is": {"New": 0.6, "Rome": 0.3}, "New": {"York": 0.6}, "lies": {"New": 0.6}}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("New York",), 1.0),
        (("New",), 1.0),
        (("New Rome",), 0.0),
        (("Rome",), 0.0),
        (("Rome", "Paris", "New York"), 1.0),
        (("York", "Rome York"), 0.0),
    ],
)
def test_exact_asks_for_all_tokens_of_any_alias(speaking, answers, expected):
    asked = _asked(portability=(Probe(prompt="in is", answers=answers),))
    assert _value(speaking(NEW_YORK), "portability.exact", asked) == expected


def test_contains_finds_an_answer_further_on_and_any_alias(speaking):
    rows = {"is": {"in": 0.6}, "in": {"New": 0.6}, "New": {"York": 0.6}}
    asked = _asked(portability=(Probe(prompt="so is", answers=("Oslo", "New York")),))
    editor = speaking(rows)
    assert _value(editor, "portability.exact", asked) == 0.0
    assert _value(editor, "portability.contains", asked) == 1.0
    assert _value(editor, "portability.contains", asked, tokens=3) == 1.0
    assert _value(editor, "portability.contains", asked, tokens=2) == 0.0


def test_contains_hears_nothing_after_the_end_of_the_text(speaking):
    rows = {"is": {"<end>": 0.6}, "<end>": {"Rome": 0.6}}
    assert _value(speaking(rows), "reliability.contains", _asked()) == 0.0


def test_contains_does_not_find_an_answer_in_the_prompt(speaking):
    rows = {"is": {"so": 0.6}}
    assert _value(speaking(rows), "reliability.contains", _asked(prompt="Rome is")) == 0.0


# token.


def test_token_counts_the_right_ones_under_teacher_forcing_of_the_first_alias(speaking):
    rows = {"is": {"Paris": 0.6}, "New": {"York": 0.6}}
    asked = _asked(portability=(Probe(prompt="in is", answers=("New York", "Paris")),))
    assert _value(speaking(rows), "portability.token", asked) == 0.5


@pytest.fixture(scope="module")
def merging():
    """Return a tokenizer that merges across blanks, and so across the end of a prompt."""
    letters = ["<pad>", "<end>", "a", "b", "s", "t", " ", "s ", " t", "b t"]
    merges = [("s", " "), (" ", "t"), ("b", " t")]
    vocabulary = {token: n for n, token in enumerate(letters)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)),
        eos_token="<end>",
        pad_token="<pad>",
    )


@torch.no_grad()
def _as_the_peer_counts(model, tokenizer, prompts, targets):
    """Return EasyEdit's token accuracy: left padding, the prompt's own tokens counted on it alone."""
    texts = [
        tokenizer(f"{prompt} {target}")["input_ids"]
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    width = max(len(ids) for ids in texts)
    pads = [width - len(ids) for ids in texts]
    ids = torch.tensor([[0] * k + own for k, own in zip(pads, texts, strict=True)])
    mask = torch.tensor([[0] * k + [1] * (width - k) for k in pads])
    said = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
    starts = [
        k + len(tokenizer(prompt)["input_ids"]) for k, prompt in zip(pads, prompts, strict=True)
    ]
    return [
        sum(int(said[row, j - 1] == ids[row, j]) for j in range(start, width)) / (width - start)
        for row, start in enumerate(starts)
    ]


def test_token_accuracy_is_the_peers_also_where_tokens_merge_across_the_border(tiny, merging):
    source = random.Random(0)

    def text(least, most):
        return "".join(source.choice("abst ") for _ in range(source.randint(least, most)))

    requests = [
        EditRequest(prompt=f"a{text(0, 9)}s", target_new=f"t{text(3, 9)}") for _ in "x" * 20
    ]
    requests += [
        EditRequest(prompt=f"b{text(0, 9)}a", target_new=f"b{text(1, 5)}") for _ in "x" * 20
    ]
    requests = list({request.id: request for request in requests}.values())
    model = tiny("llama", torch.float64, vocab_size=10, initializer_range=0.4)
    report = Editor(model, merging, plugins=Plugins()).evaluate(requests, ["reliability.token"])
    prompts = [request.prompt for request in requests]
    targets = [request.target_new for request in requests]
    expected = _as_the_peer_counts(model, merging, prompts, targets)
    assert [score.value for score in report.scores] == expected
    assert len(set(expected)) > 4
    merged = [
        merging.tokenize(f"{prompt} {target}")[: len(own)] != own
        for prompt, target in zip(prompts, targets, strict=True)
        if (own := merging.tokenize(prompt))
    ]
    assert any(merged)
    assert not all(merged)


@pytest.mark.parametrize("protocol", ["token", "unchanged", "kl"])
def test_an_answer_swallowed_by_the_prompts_last_token_is_absent_and_never_not_a_number(
    tiny, merging, protocol
):
    swallowed, plain = Probe(prompt="ab", answers="t"), Probe(prompt="aa", answers="b")
    requests = [
        EditRequest(prompt="a", target_new="b", locality=(swallowed,)),
        EditRequest(prompt="s", target_new="b", locality=(swallowed, plain)),
    ]
    model = tiny("llama", vocab_size=10)
    metric = f"locality.{protocol}"
    report = Editor(model, merging, plugins=Plugins()).evaluate(requests, [metric])
    assert report.missing == {metric: 1}
    assert [score.request for score in report.scores] == [requests[1].id]
    assert math.isfinite(report.means()[metric])


# preference and probability.


@pytest.mark.parametrize(
    ("new", "true", "expected"), [(0.5, 0.4, 1.0), (0.4, 0.5, 0.0), (0.4, 0.4, 0.0)]
)
def test_preference_is_strict(speaking, new, true, expected):
    editor = speaking({"is": {"Rome": new, "Paris": true}})
    assert _value(editor, "reliability.preference", _asked(target_true="Paris")) == expected


def test_preference_sets_a_probes_answer_against_the_new_target_and_not_the_old_one(speaking):
    asked = _asked(target_true="Paris", locality=(Probe(prompt="in was", answers="Oslo"),))
    editor = speaking({"was": {"Oslo": 0.3, "Rome": 0.4, "Paris": 0.2}})
    assert _value(editor, "locality.preference", asked) == 0.0


def test_preference_compares_means_over_tokens(speaking):
    # 0.25 in all against 0.4, but 0.5 a token.
    rows = {"is": {"New": 0.5, "Paris": 0.4}, "New": {"York": 0.5}}
    asked = _asked(target_new="New York", target_true="Paris")
    assert _value(speaking(rows), "reliability.preference", asked) == 1.0


def test_preference_for_the_same_answer_is_a_tie_and_so_a_failure(speaking):
    asked = _asked(target_true="Rome", locality=(Probe(prompt="in is", answers=("Rome", "Oslo")),))
    names = ["reliability.preference", "locality.preference"]
    assert speaking({"is": {"Rome": 0.9}}).evaluate(asked, names).means() == dict.fromkeys(names, 0)


def test_probability_is_the_geometric_mean_over_tokens_of_the_likeliest_alias(speaking):
    rows = {"is": {"New": 0.5, "Rome": 0.2}, "New": {"York": 0.125}}
    asked = _asked(portability=(Probe(prompt="in is", answers=("Rome", "New York")),))
    value = _value(speaking(rows), "portability.probability", asked)
    assert value == pytest.approx(math.sqrt(0.5 * 0.125))


# unchanged and kl.


BEFORE = {"is": {"Rome": 0.6}, "New": {"York": 0.6}}
AFTER = {"is": {"Oslo": 0.7}, "New": {"York": 0.9}}


@pytest.mark.parametrize("asked_before_the_edit", [False, True])
def test_locality_compares_with_the_unedited_model_while_an_edit_is_in_force(
    speaking, asked_before_the_edit
):
    metrics = ["locality.unchanged", "locality.kl", "locality.exact"]
    asked = _asked(locality=(Probe(prompt="in is", answers="New York"),))
    editor = speaking(BEFORE, AFTER, edited=False)
    if asked_before_the_edit:
        assert list(editor.evaluate(asked, metrics).means().values()) == [1.0, 0.0, 0.0]
    editor.edit(EDIT)
    rows = [(_row(BEFORE[word]), _row(AFTER[word])) for word in ("is", "New")]
    # From the unedited model's words to this one's; the other way round it is another number.
    divergence = [sum(p * math.log(p / q) for p, q in zip(*row, strict=True)) for row in rows]
    found = editor.evaluate(asked, metrics).means()
    assert found["locality.unchanged"] == 0.5
    assert found["locality.kl"] == pytest.approx(sum(divergence).item() / 2, abs=1e-12)
    assert found["locality.exact"] == 0.0


def test_unchanged_asks_for_the_same_words_and_not_for_right_ones(speaking):
    asked = _asked(locality=(Probe(prompt="in is", answers="Paris"),))
    still_wrong = {"is": {"Rome": 0.4}}, {"is": {"Rome": 0.8}}
    now_right = {"is": {"Rome": 0.6}}, {"is": {"Paris": 0.6}}
    assert _value(speaking(*still_wrong), "locality.unchanged", asked) == 1.0
    assert _value(speaking(*now_right), "locality.unchanged", asked) == 0.0


def test_after_undo_nothing_has_changed(speaking):
    asked = _asked(locality=(Probe(prompt="in is", answers="New York"),))
    editor = speaking(BEFORE, AFTER)
    assert _value(editor, "locality.kl", asked) > 0.1
    editor.undo()
    means = editor.evaluate(asked, ["locality.kl", "locality.unchanged"]).means()
    assert means == {"locality.kl": 0.0, "locality.unchanged": 1.0}


def test_inside_original_the_unedited_model_is_judged(speaking):
    asked = _asked(locality=(Probe(prompt="in is", answers="New York"),))
    editor = speaking(BEFORE, AFTER)
    names = ["reliability.exact", "locality.unchanged", "locality.kl"]
    with editor.original():
        assert list(editor.evaluate(asked, names).means().values()) == [1.0, 1.0, 0.0]
    assert _value(editor, "reliability.exact", asked) == 0.0


# Groups, what is known, what is missing.


def test_probes_with_a_group_are_reported_under_it_too(speaking):
    probes = (
        Probe(prompt="in is", answers="Rome", group="near"),
        Probe(prompt="in was", answers="Rome", group="near"),
        Probe(prompt="so is", answers="Rome", group="far"),
        Probe(prompt="so was", answers="Rome"),
    )
    editor = speaking({"is": {"Rome": 0.6}})
    report = editor.evaluate(_asked(locality=probes), ["locality.exact"])
    assert report.means() == {
        "locality.exact": 0.5,
        "locality.exact:near": 0.5,
        "locality.exact:far": 1.0,
    }
    assert report.missing == {}


@pytest.mark.parametrize("edited", [False, True])
def test_known_leaves_out_what_the_unedited_model_gets_wrong(speaking, edited):
    before = {"is": {"Rome": 0.6}, "was": {"Paris": 0.6}}
    after = {"is": {"Paris": 0.6}, "was": {"Rome": 0.6}}
    probes = tuple(Probe(prompt=f"in {word}", answers=("Oslo", "Rome")) for word in ("is", "was"))
    editor = speaking(before, after, edited=edited)
    asked = _asked(locality=probes)
    assert _value(editor, "locality.exact", asked) == 0.5
    assert _value(editor, "locality.exact", asked, known=True) == (0.0 if edited else 1.0)
    assert _value(editor, "locality.exact", asked, known=False) == 0.5


def test_a_request_of_which_nothing_is_known_is_counted_as_missing(speaking):
    asked = _asked(locality=(Probe(prompt="in was", answers="Rome"),))
    report = speaking({}).evaluate(asked, {"locality.exact": {"known": True}})
    assert (report.means(), report.missing) == ({}, {"locality.exact": 1})


@pytest.mark.parametrize(
    "metric", sorted(name for name in KNOWN if not name.startswith(("rel", "flu", "perp")))
)
def test_a_metric_that_lacks_its_data_is_absent_and_counted(speaking, metric):
    report = speaking({}).evaluate([_asked(), _asked(prompt="so is")], [metric])
    assert (report.means(), report.missing) == ({}, {metric: 2})


def test_only_requests_that_lack_the_data_count_as_missing(speaking):
    asked = [_asked(), _asked(prompt="so is", target_true="Paris"), _asked(prompt="sure is")]
    report = speaking({"is": {"Rome": 0.6}}).evaluate(asked, ["reliability.preference"])
    assert report.missing == {"reliability.preference": 2}
    assert report.means() == {"reliability.preference": 1.0}


def test_a_request_given_twice_is_not_missing_once(speaking):
    report = speaking({}).evaluate([_asked(), _asked()], ["reliability.exact"])
    assert report.missing == {}


def test_no_request_at_all_gives_an_empty_report(speaking):
    names = ["reliability.exact", "locality.kl", "portability.contains", "fluency"]
    report = speaking({}).evaluate([], names)
    assert (report.scores, report.missing) == ((), {})


# What is refused.


@pytest.fixture
def reads():
    """Return what counts the forward passes of a model."""

    def of(model):
        found = []
        model.register_forward_pre_hook(
            lambda _, __, given: found.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        return found

    return of


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("reliability.exakt", "did you mean 'reliability.exact'?"),
        ("reliabilty.token", "did you mean 'reliability.token'?"),
        ("portability.kl", "did you mean 'portability."),
        ("fluencey", "did you mean 'fluency'?"),
        ("zzz", "unknown metric 'zzz'"),
        ("locality.exact:near", "did you mean 'locality.exact'?"),
    ],
)
def test_an_unknown_metric_is_refused_with_a_close_one_before_any_work(
    speaking, reads, metric, hint
):
    editor = speaking({})
    done = reads(editor.model)
    with pytest.raises(ConfigError) as refused:
        editor.evaluate(_asked(), ["reliability.exact", metric])
    assert hint in str(refused.value)
    assert done == []


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({"locality.exact": {"knwon": True}}, "locality.exact has no option 'knwon'; did you mean"),
        ({"locality.exact": {"tokens": 3}}, "locality.exact has no option 'tokens'"),
        ({"locality.exact": {"known": "yes"}}, "known must be true or false, not 'yes'"),
        ({"locality.exact": True}, "the options of 'locality.exact' are True"),
        ({"reliability.contains": {"tokens": 0}}, "tokens must be a whole number from 1 on, not 0"),
        ({"reliability.contains": {"tokens": "20"}}, "not '20'"),
        ({"fluency": {"seed": 1.5}}, "seed must be a whole number"),
        ({"perplexity": {"text": 3}}, "text must be the path of a file, not 3"),
        ({"perplexity": {"text": "x", "window": 1}}, "window must be a whole number from 2 on"),
        ({"drift": {"known": True}}, "drift has no option 'known'"),
    ],
)
def test_an_option_that_a_metric_cannot_follow_is_refused(speaking, metrics, problem):
    with pytest.raises(ConfigError) as refused:
        speaking({}).evaluate(_asked(), metrics)
    assert problem in str(refused.value)


def test_options_may_be_left_empty_as_in_a_plan_file(speaking):
    editor = speaking({"is": {"Rome": 0.6}})
    means = editor.evaluate(_asked(), {"reliability.exact": None, "reliability.token": {}}).means()
    assert means == {"reliability.exact": 1.0, "reliability.token": 1.0}


# Joiners and chat.


def test_a_joiner_that_the_request_chose_is_judged_with_it(merging, tiny):
    model = tiny("llama", torch.float64, vocab_size=10, initializer_range=0.4)
    editor = Editor(model, merging, plugins=Plugins())
    seen = []
    for joiner in (None, "", "s"):
        asked = EditRequest(prompt="ab", target_new="tt", joiner=joiner, paraphrases=("aa",))
        names = ["reliability.probability", "generalization.probability"]
        found = list(editor.evaluate(asked, names).means().values())
        expected = []
        for prompt in ("ab", "aa"):
            own = merging(prompt)["input_ids"]
            target = merging(asked.joiner + "tt")["input_ids"]
            joint = merging(prompt + asked.joiner + "tt")["input_ids"]
            target = joint[len(own) :] if joint[: len(own)] == own else target
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*own, *target]])).logits[0]
            rows = logits[len(own) - 1 : -1].log_softmax(-1)
            expected.append(rows[torch.arange(len(target)), target].mean().exp().item())
        assert found == pytest.approx(expected, abs=1e-12)
        seen.append(found)
    assert len({tuple(found) for found in seen}) == 3


def test_chat_passes_every_prompt_through_the_template(speaking, words):
    rows = {"open": {"Rome": 0.6}, "is": {"Paris": 0.6}}
    asked = EditRequest(
        prompt="in is",
        target_new="Rome",
        target_true="Paris",
        paraphrases=("so is",),
        locality=(Probe(prompt="lies", answers="Rome"),),
        portability=(Probe(prompt="was", answers=("Oslo", "Rome")),),
    )
    names = [f"{axis}.{p}" for axis in AXES for p in ("exact", "contains", "token")][:-1]
    names += ["reliability.preference", "locality.unchanged"]
    bare, chat = speaking(rows), speaking(rows, chat=True)
    heard = []
    chat.model.register_forward_pre_hook(
        lambda _, __, given: heard.append(given["input_ids"]), with_kwargs=True
    )
    assert (
        chat.evaluate(asked, [*names, "fluency"]).means().items()
        >= dict.fromkeys(names, 1.0).items()
    )
    assert bare.evaluate(asked, names).means()["reliability.exact"] == 0.0
    prompts = [ids for ids in heard if ids.shape[1] > 1]  # the rest is answers and continuations
    assert prompts
    assert all(words.decode(row[0]) == "turn" for ids in prompts for row in ids)


def test_chat_without_a_template_is_refused_in_one_sentence(speaking, merging, tiny):
    editor = Editor(tiny("llama", vocab_size=10), merging, plugins=Plugins(), chat=True)
    with pytest.raises(RequestError, match="no chat template"):
        editor.evaluate(EditRequest(prompt="ab", target_new="t"))


# Fluency.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 2-grams ab ba ab: ⅔ log₂ 1.5 + ⅓ log₂ 3; 3-grams aba bab: 1.
        ("a b a b", (2 / 3 * (2 / 3 * math.log2(1.5) + 1 / 3 * math.log2(3)) + 4 / 3 * 1) / 2),
        # Three 2-grams, two 3-grams, all different; the full stop is a word of its own.
        ("a b c.", (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2),
        ("a a a a a a", 0.0),
        ("a b", 0.0),
        ("a", 0.0),
        ("", 0.0),
    ],
)
def test_the_entropy_of_words_is_the_one_by_hand(text, expected):
    found = ngram_entropy(text)
    assert found == pytest.approx(expected, abs=1e-12)
    assert math.copysign(1, found) == 1


CIRCLE = {"Rome": {"Paris": SURE}, "Paris": {"Oslo": SURE}, "Oslo": {"Rome": SURE}}


def test_fluency_is_of_so_many_tokens_prompt_included(speaking):
    value = _value(speaking(CIRCLE), "fluency", _asked(prompt="Rome Paris"), tokens=6)
    two = 2 * 0.4 * math.log2(2.5) + 0.2 * math.log2(5)  # of Rome Paris Oslo Rome Paris Oslo
    three = 0.5 * math.log2(2) + 2 * 0.25 * math.log2(4)
    assert value == pytest.approx((2 / 3 * two + 4 / 3 * three) / 2, abs=1e-12)


def test_fluency_ends_where_the_model_ends(speaking):
    rows = {"Oslo": {"<end>": SURE}, "<end>": {"Rome": SURE}, "Rome": {"Oslo": SURE}}
    value = _value(speaking(rows), "fluency", _asked(prompt="in is Oslo"))
    assert value == pytest.approx((2 / 3 * 1 + 4 / 3 * 0) / 2, abs=1e-12)


SPREAD = {word: {"Rome": 0.3, "Paris": 0.3, "so": 0.2, "in": 0.19} for word in WORDS}


def test_fluency_is_seeded_and_leaves_the_random_state_alone(speaking):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    editor = speaking(SPREAD)
    first = _value(editor, "fluency", _asked())
    torch.manual_seed(2)
    other = torch.get_rng_state()
    assert _value(editor, "fluency", _asked()) == first
    assert torch.equal(torch.get_rng_state(), other)
    assert not torch.equal(state, other)
    assert len({_value(editor, "fluency", _asked(), seed=seed) for seed in range(3)}) == 3


def test_fluency_of_a_prompt_does_not_depend_on_the_others(speaking):
    editor = speaking(SPREAD)
    requests = [_asked(prompt=text) for text in ("in is", "is", "so is so lies in", "so is")]
    together = editor.evaluate(requests, ["fluency"])
    alone = [_value(editor, "fluency", one) for one in requests]
    assert [score.value for score in together.scores] == alone


def test_fluency_takes_nothing_from_the_models_own_generation_settings(speaking):
    plain, tuned = speaking(SPREAD), speaking(SPREAD)
    settings = tuned.model.generation_config
    settings.temperature, settings.repetition_penalty, settings.top_p = 0.1, 5.0, 0.2
    settings.num_beams, settings.max_new_tokens = 3, 4
    assert _value(tuned, "fluency", _asked()) == _value(plain, "fluency", _asked())


def test_fluency_keeps_to_what_the_model_can_read_at_a_time(edit_with, tiny, facts):
    editor = edit_with(model=tiny("gpt2", n_positions=8))
    requests = [*facts(2), EditRequest(prompt="Paris", target_new="Rome")]
    assert len(editor.evaluate(requests, ["fluency"]).scores) == 3


# Perplexity.

TALK = {"Rome": {"is": 0.5}, "is": {"Paris": 0.25}, "Paris": {"was": 0.8}}


@pytest.mark.parametrize(
    ("window", "probabilities"),
    [(512, (0.5, 0.25, 0.8)), (4, (0.5, 0.25, 0.8)), (2, (0.5, 0.8)), (3, (0.5, 0.25))],
)
def test_perplexity_is_exp_of_the_mean_nll_over_windows(speaking, tmp_path, window, probabilities):
    text = tmp_path / "held-out.txt"
    text.write_text("Rome is\nParis was")
    value = _value(speaking(TALK), "perplexity", _asked(), text=str(text), window=window)
    mean = -sum(math.log(p) for p in probabilities) / len(probabilities)
    assert value == pytest.approx(math.exp(mean), abs=1e-10)


def test_perplexity_is_of_the_model_as_it_is_and_one_number_for_all_requests(speaking, tmp_path):
    text = tmp_path / "held-out.txt"
    text.write_text("Rome is Paris was")
    editor = speaking(TALK, {"is": {"Paris": 0.5}})
    report = editor.evaluate([_asked(), EDIT], {"perplexity": {"text": text}})
    assert report.scores == (Score(metric="perplexity", value=pytest.approx(0.2 ** (-1 / 3))),)
    assert report.missing == {}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.txt", None, "cannot be read (No such file or directory)"),
        (".", None, "cannot be read (Is a directory)"),
        ("binary.txt", b"\xff\xfe\xfa", "is not UTF-8 text"),
        ("empty.txt", b"", "holds fewer than two tokens"),
        ("one.txt", b"Rome", "holds fewer than two tokens"),
    ],
)
def test_a_text_that_gives_no_perplexity_is_one_sentence(
    speaking, tmp_path, name, content, problem
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        speaking({}).evaluate(_asked(), {"perplexity": {"text": str(path)}})
    assert str(refused.value) == f"metrics: perplexity: {path} {problem}"


def test_perplexity_without_a_text_says_how_to_give_one(speaking):
    with pytest.raises(ConfigError, match=r"pass perplexity: \{text: FILE\}"):
        speaking({}).evaluate(_asked(), ["perplexity"])


# Drift.


def test_drift_is_the_mean_growth_of_the_norms_of_touched_weights(edit_with, facts):
    editor = edit_with("batcher", "gpt2", dtype=torch.float64)
    before = {path: one.detach().clone() for path, one in editor.model.named_parameters()}
    editor.edit(facts(2))
    editor.edit(facts(1, start=2))
    growth = [
        (one.detach().norm() / before[path].norm()).item() - 1
        for path, one in editor.model.named_parameters()
        if not torch.equal(one, before[path])
    ]
    assert len(growth) == 2
    found = _value(editor, "drift", facts(1)[0])
    assert found == pytest.approx(sum(growth) / 2, abs=1e-12)
    assert abs(found) > 1e-4


def test_drift_is_negative_when_weights_shrink_and_nothing_in_the_original(speaking):
    editor = speaking({"is": {"Rome": 0.999}}, {"is": {"Rome": 0.1}})
    after, before = _head({"is": {"Rome": 0.1}}).norm(), _head({"is": {"Rome": 0.999}}).norm()
    grown = (after / before).item() - 1
    assert grown < 0
    assert _value(editor, "drift", _asked()) == pytest.approx(grown, abs=1e-12)
    with editor.original():
        assert _value(editor, "drift", _asked()) == 0.0


# The baseline, and other people's metrics.


def test_the_baseline_asks_each_thing_once_and_of_the_unedited_model(speaking):
    editor = speaking(BEFORE, AFTER)
    asked = []

    def most_likely(model):
        asked.append(model)
        return model.lm_head.weight[:, WORDS.index("is")].argmax().item()

    for _ in range(3):
        assert editor.baseline.value("is", most_likely) == WORDS.index("Rome")
    assert asked == [editor.model]
    assert most_likely(editor.model) == WORDS.index("Oslo")


def test_the_baseline_asks_only_for_what_it_does_not_know_and_in_order():
    from contextlib import nullcontext

    rounds = []

    def doubled(_, keys):
        rounds.append(keys)
        return [2 * key for key in keys]

    baseline = Baseline(torch.nn.Linear(1, 1), nullcontext)
    assert baseline.many([3, 1, 3], doubled) == {3: 6, 1: 2}
    assert baseline.many([5, 1, 2], doubled) == {5: 10, 1: 2, 2: 4}
    assert baseline.many([1, 2], doubled) == {1: 2, 2: 4}
    assert baseline.many([], doubled) == {}
    assert rounds == [[3, 1], [5, 2]]


def test_a_question_that_fails_leaves_the_edit_in_force_and_nothing_kept(speaking):
    editor = speaking(BEFORE, AFTER)
    edited = editor.model.lm_head.weight.clone()
    with pytest.raises(ZeroDivisionError):
        editor.baseline.value("x", lambda _: 1 / 0)
    assert torch.equal(editor.model.lm_head.weight, edited)
    assert editor.baseline.value("x", lambda _: 7) == 7


def test_a_question_to_the_baseline_may_ask_another_one(speaking):
    editor = speaking(BEFORE, AFTER)
    edited = editor.model.lm_head.weight.clone()

    def norm(model):
        return model.lm_head.weight.norm().item()

    def outer(model):
        return editor.baseline.value("inner", norm), norm(model)

    inner, own = editor.baseline.value("outer", outer)
    assert inner == own == pytest.approx(_head(BEFORE).norm().item())
    assert torch.equal(editor.model.lm_head.weight, edited)


def test_a_second_report_asks_the_unedited_model_nothing(speaking, reads):
    editor = speaking(BEFORE, AFTER)
    asked = _asked(locality=(Probe(prompt="in is", answers="New York"),))
    metrics = {"locality.unchanged": {}, "locality.kl": {}, "locality.exact": {"known": True}}
    done = reads(editor.model)
    first = editor.evaluate(asked, metrics).means()
    with_baseline = len(done)
    assert editor.evaluate(asked, metrics).means() == first
    assert len(done) - with_baseline < with_baseline


@pytest.fixture
def stranger():
    """Return a plugin without a method, which judges how often a word stands in the requests."""
    module = ModuleType("stranger")
    module.asked = []

    @hookimpl
    def evaluate(batch, baseline, metrics):
        module.asked.append(dict(metrics))
        if "mine.words" in metrics:
            word = metrics["mine.words"].get("word", "Rome")
            for request in batch.requests:
                if request.target_new != "Oslo":
                    value = float(request.target_new.count(word))
                    yield Score(metric="mine.words", request=request.id, value=value)
        if "mine.head" in metrics:
            head = baseline.value("mine.head", lambda model: model.lm_head.weight.norm().item())
            yield Score(metric="mine.head", value=head)

    module.evaluate = evaluate
    return module


def test_a_strangers_evaluator_adds_its_metric_beside_cores(speaking, stranger):
    editor = speaking(BEFORE, AFTER, stranger)
    requests = [_asked(), _asked(target_new="Paris"), _asked(target_new="Oslo")]
    metrics = {"mine.words": {"word": "Paris"}, "mine.head": {}, "reliability.exact": {}}
    report = editor.evaluate(requests, metrics)
    assert report.means() == {
        "mine.words": 0.5,
        "mine.head": pytest.approx(_head(BEFORE).norm().item()),
        "reliability.exact": pytest.approx(1 / 3),
    }
    assert report.missing == {"mine.words": 1}
    assert stranger.asked == [metrics]


def test_a_metric_that_no_stranger_knows_either_is_refused(speaking, stranger):
    with pytest.raises(ConfigError, match=r"unknown metric 'mine\.wrods'"):
        speaking({}, None, stranger).evaluate(_asked(), ["mine.wrods"])


@pytest.fixture
def named(stranger):
    """Return the stranger, who says beforehand which metrics it knows."""
    stranger.metric_names = hookimpl(lambda: {"mine.words": "Counts.", "mine.head": "Measures."})
    return stranger


def test_a_metric_that_a_plugin_names_is_counted_where_it_finds_no_data(speaking, named):
    report = speaking({}, None, named).evaluate(_asked(target_new="Oslo"), ["mine.words"])
    assert (report.scores, report.missing) == ((), {"mine.words": 1})


def test_a_name_that_nobody_knows_is_refused_before_the_work(speaking, named):
    with pytest.raises(
        ConfigError, match=r"unknown metric 'mine\.wrods'; did you mean 'mine\.words'"
    ):
        speaking({}, None, named).evaluate(_asked(), ["mine.wrods"])
    assert named.asked == []


def test_a_key_of_a_strangers_does_not_meet_cores_own(speaking):
    editor = speaking(BEFORE, AFTER)
    editor.baseline.value(("norm", "lm_head.weight"), lambda _: 1e9)
    editor.baseline.value(("distribution", "lm_head.weight"), lambda _: None)
    grown = _head(AFTER).norm() / _head(BEFORE).norm() - 1
    assert _value(editor, "drift", _asked()) == pytest.approx(grown.item(), abs=1e-12)


# The report, and how much work it is.


def test_a_report_says_whose_edits_and_how_many_are_in_force(speaking):
    editor = speaking(BEFORE, AFTER, edited=False)
    assert (editor.evaluate(_asked()).method, editor.evaluate(_asked()).step) == ("", 0)
    editor.edit(EDIT)
    report = editor.evaluate(_asked())
    assert (report.method, report.step) == ("rewriter", 1)
    assert report.seconds > 0
    assert report.peak_memory > 1_000_000


def test_judging_changes_nothing_of_the_model(speaking, state_of, tmp_path):
    (tmp_path / "text").write_text("Rome is Paris")
    editor = speaking(EVERYWHERE, AFTER)
    editor.model.train()
    before = state_of(editor.model)
    metrics = {name: {} for name in KNOWN} | {"perplexity": {"text": tmp_path / "text"}}
    editor.evaluate(ON_EVERY_AXIS, metrics)
    assert state_of(editor.model) == before


def test_all_axes_and_protocols_share_their_reads(speaking, reads):
    editor = speaking(EVERYWHERE)
    done = reads(editor.model)
    protocols = ("exact", "token", "preference", "probability")
    editor.evaluate(ON_EVERY_AXIS, [f"{axis}.{one}" for axis in AXES for one in protocols])
    assert done == [(4, 2)]


# Beginnings that many prompts share.


def _many_alike():
    places = [f"{one} {other}" for one in WORDS[2:12] for other in WORDS[2:12]]
    return [EditRequest(prompt=f"so so in {place} is", target_new="Rome") for place in places]


def _tokens_read(editor, metrics):
    read = []
    handle = editor.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    means = editor.evaluate(_many_alike(), metrics).means()
    handle.remove()
    return means, sum(read)


@pytest.mark.parametrize("metric", ["reliability.exact", "reliability.token"])
def test_what_prompts_share_is_read_once_unless_a_memory_looks_at_whole_prompts(
    speaking, listener, metric
):
    rows = {"is": {"Rome": 0.7}}
    plain, shared = _tokens_read(speaking(rows), [metric])
    editor = speaking(rows, None, listener)
    editor.edit(EDIT, "listener")
    whole, apart = _tokens_read(editor, [metric])
    assert plain == whole == {metric: 1.0}
    assert apart == 100 * 6
    assert shared < apart * 0.7
