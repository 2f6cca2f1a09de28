"""The lab's metrics, against a plain forward of each prompt with each answer and sums done by hand."""

import json
import math
from types import ModuleType

import pytest
import torch

import kedit_lab
from kedit_core import Editor, EditRequest, Plugins, Probe, Score, encode, hookimpl
from kedit_core.errors import ConfigError, RequestError
from kedit_core.testing import byte_level_tokenizer, tiny_model, trained_model
from kedit_core.tokens import encode_target
from kedit_lab.consistency import TfIdf
from kedit_lab.metric_names import METRICS

KNOWN = EditRequest(
    prompt="The capital of {} is",
    subject="France",
    target_new="Paris",
    target_true="Oslo",
    paraphrases=("{} has its capital in", "The river of {} is"),
    locality=(
        Probe(prompt="The capital of Norway is", answers="Oslo", group="near"),
        Probe(prompt="The capital of Peru is", answers="Lima"),
        Probe(prompt="The capital of Egypt is", answers="Oslo", group="near"),
    ),
)
EDITED = EditRequest(
    prompt="The capital of {} is",
    subject="Norway",
    target_new="Lima",
    target_true="Oslo",
    paraphrases=("{} has its capital in",),
    locality=(Probe(prompt="The capital of Peru is", answers="Cairo"),),
)
BARE = EditRequest(prompt="It is so in", target_new="Bern")


@pytest.fixture(scope="module")
def editor(request):
    """Return an editor of a model that knows a few facts, with no plugin but the lab."""
    torch.set_num_threads(1)
    plugins = Plugins()
    plugins.register(kedit_lab, "lab")
    folder = request.config.cache.mkdir("kedit-models")
    return Editor(*trained_model("llama", cache_folder=folder), plugins=plugins)


def _log_probs(editor, prompt, answer):
    """Return the log-probabilities of an answer's tokens, and whether each is the likeliest."""
    read = encode(editor.tokenizer, [prompt])[0]
    ids = encode_target(editor.tokenizer, read, f" {answer}")
    with torch.no_grad():
        logits = editor.model(torch.tensor([[*read.ids, *ids]])).logits[0, len(read.ids) - 1 : -1]
    own = logits.log_softmax(-1)[torch.arange(len(ids)), list(ids)]
    return own, logits.argmax(-1) == torch.tensor(ids)


def _nll(editor, prompt, answer):
    return -float(_log_probs(editor, prompt, answer)[0].mean())


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _preferred(editor, request):
    """Return a request's ES, PS and NS."""

    def better(prompt, answer, rival):
        return float(_nll(editor, prompt, answer) < _nll(editor, prompt, rival))

    new, true = request.target_new, request.target_true
    return (
        better(request.prompt, new, true),
        _mean(better(prompt, new, true) for prompt in request.paraphrases),
        _mean(better(probe.prompt, probe.answers[0], new) for probe in request.locality),
    )


def test_the_score_of_counterfact_is_the_harmonic_mean_of_its_three_means(editor):
    both = [_preferred(editor, request) for request in (KNOWN, EDITED)]
    three = [_mean(values) for values in zip(*both, strict=True)]
    assert three[0] == 0.5  # the one is known, the other not yet made so
    report = editor.evaluate([KNOWN, EDITED], ["counterfact.score"])
    expected = 3 / sum(1 / value for value in three)
    assert report.scores == (Score(metric="counterfact.score", value=pytest.approx(expected)),)
    names = [f"{axis}.preference" for axis in ("reliability", "generalization", "locality")]
    means = editor.evaluate([KNOWN, EDITED], names).means()
    assert [means[name] for name in names] == three


def test_the_score_is_0_where_one_of_the_three_is(editor):
    assert editor.evaluate(EDITED, ["counterfact.score"]).means() == {"counterfact.score": 0.0}


def test_magnitudes_are_differences_of_probabilities(editor):
    names = [f"{axis}.magnitude" for axis in ("reliability", "generalization", "locality")]
    means = editor.evaluate(KNOWN, names).means()

    def gap(prompt, answer, rival):
        return math.exp(-_nll(editor, prompt, answer)) - math.exp(-_nll(editor, prompt, rival))

    near = [gap(one.prompt, one.answers[0], "Paris") for one in KNOWN.locality]
    expected = {
        names[0]: gap(KNOWN.prompt, "Paris", "Oslo"),
        names[1]: _mean(gap(prompt, "Paris", "Oslo") for prompt in KNOWN.paraphrases),
        names[2]: _mean(near),
        f"{names[2]}:near": _mean([near[0], near[2]]),
    }
    assert means == pytest.approx(expected, abs=1e-6)
    assert means["reliability.magnitude"] > 0.5


@pytest.mark.parametrize(
    ("metric", "asked"),
    [
        ("zsre.efficacy", [(KNOWN.prompt, "Paris")]),
        ("zsre.paraphrase", [(prompt, "Paris") for prompt in KNOWN.paraphrases]),
        ("zsre.specificity", [(probe.prompt, probe.answers[0]) for probe in KNOWN.locality]),
    ],
)
def test_zsre_means_over_tokens_then_prompts(editor, metric, asked):
    expected = _mean(float(_log_probs(editor, *one)[1].double().mean()) for one in asked)
    assert editor.evaluate(KNOWN, [metric]).means()[metric] == pytest.approx(expected)


# Negated and reversed prompts.


def _about_france(target_new="Paris", **extra):
    return EditRequest(
        prompt="The capital of {} is", subject="France", target_new=target_new, extra=extra
    )


def test_negation_is_the_share_of_negated_prompts_that_do_not_bring_the_new_target(editor):
    others = ["France has its capital in", "The capital of Peru is", "The capital of Egypt is"]
    report = editor.evaluate(_about_france(negations=others), ["negation"])
    assert report.means() == {"negation": pytest.approx(2 / 3)}


def test_a_template_negates_the_prompts_of_requests_that_bring_none(editor):
    template = {"negation": {"template": "{}"}}
    assert editor.evaluate(_about_france(), template).means() == {"negation": 0.0}
    own = _about_france(negations="The capital of Peru is")
    assert editor.evaluate(own, template).means() == {"negation": 1.0}


def test_reversal_is_the_share_of_reversed_prompts_that_bring_the_subject(editor):
    # The model answers "Paris" here, so a request about Paris is one that reads backwards.
    backwards = EditRequest(
        prompt="{} rules",
        subject="Paris",
        target_new="France",
        extra={"reversals": ["The capital of France is", "The capital of Peru is"]},
    )
    assert editor.evaluate(backwards, ["reversal"]).means() == {"reversal": 0.5}


def test_a_template_reverses_the_new_targets_of_requests_that_bring_none(editor):
    backwards = EditRequest(prompt="{} rules", subject="Paris", target_new="France")
    template = {"reversal": {"template": "The capital of {} is"}}
    assert editor.evaluate(backwards, template).means() == {"reversal": 1.0}


# What lacks its data.


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_without_its_data_is_absent_and_counted(editor, metric):
    report = editor.evaluate([BARE], [metric])
    if metric == "zsre.efficacy":
        assert report.missing == {}
    else:
        assert report.scores == ()
        assert report.missing == {metric: 1}


def test_the_score_is_absent_where_one_axis_has_no_data(editor):
    request = EditRequest(prompt="It is so in", target_new="Bern", target_true="Rome")
    report = editor.evaluate([request], ["counterfact.score", "reliability.magnitude"])
    assert report.missing == {"counterfact.score": 1}
    assert list(report.means()) == ["reliability.magnitude"]


def test_only_what_was_asked_for_is_computed(editor):
    assert list(editor.evaluate(KNOWN, ["reliability.exact"]).means()) == ["reliability.exact"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"negation": {"tempalte": "{} not"}}, "negation has no option 'tempalte'; did you mean"),
        ({"negation": {"template": "not"}}, "template must be a text with one {} in it, not 'not'"),
        ({"consistency": {"tokens": 0}}, "tokens must be a whole number from 1 on, not 0"),
        ({"zsre.efficacy": {"known": True}}, "zsre.efficacy has no option 'known'"),
        ({"counterfact.scoer": {}}, "unknown metric 'counterfact.scoer'; did you mean"),
    ],
)
def test_a_name_or_an_option_that_does_not_fit_is_refused_with_what_would(editor, metrics, message):
    with pytest.raises(ConfigError) as error:
        editor.evaluate(KNOWN, metrics)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["negations", "reversals"])
def test_an_extra_that_holds_no_texts_is_refused(editor, name):
    request = EditRequest(
        prompt="In {} is", subject="Rome", target_new="so", extra={name: [{"prompt": "x"}]}
    )
    with pytest.raises(RequestError, match=rf"extra\.{name} of 'In Rome is' is .* not a list"):
        editor.evaluate(request, [name.rstrip("s")])


def test_metrics_of_strangers_go_beside_the_labs():
    stranger = ModuleType("stranger")

    @hookimpl
    def metric_names():
        return {"stranger.nothing": "Never finds its data."}

    @hookimpl
    def evaluate():
        return None

    stranger.metric_names, stranger.evaluate = metric_names, evaluate
    plugins = Plugins()
    plugins.register(kedit_lab, "lab")
    plugins.register(stranger)
    editor = Editor(tiny_model("llama"), byte_level_tokenizer(bos=True), plugins=plugins)
    report = editor.evaluate(BARE, ["stranger.nothing", "zsre.efficacy"])
    assert report.missing == {"stranger.nothing": 1}


# Consistency.


def test_a_text_is_consistent_with_itself_and_not_with_one_of_other_words():
    weigher = TfIdf(["rome is old", "paris is new"])
    assert weigher.cosine("Rome, old!", "old rome") == pytest.approx(1.0)
    assert weigher.cosine("rome", "paris") == 0.0
    assert weigher.cosine("nothing known", "rome") == 0.0


def test_rare_words_weigh_more_as_worked_out_by_hand():
    weigher = TfIdf(["rome is", "paris is", "is is"])
    rare, common = math.log(4 / 2) + 1, math.log(4 / 4) + 1
    one, other = (rare, common), (rare, 2 * common)  # (rome, is)
    expected = sum(a * b for a, b in zip(one, other, strict=True)) / (
        math.hypot(*one) * math.hypot(*other)
    )
    assert weigher.cosine("Rome is a", "is rome is") == pytest.approx(expected)


@pytest.fixture
def snippets(tmp_path):
    path = tmp_path / "snippets.json"
    samples = [{"name": "x", "text": "Rome lies on seven hills"}, {"name": "y", "text": "so it is"}]
    record = {"relation_id": "P36", "target_id": "Q220", "samples": samples}
    path.write_text(json.dumps([record, {**record, "target_id": "Q90", "samples": []}]))
    return path


def test_reference_texts_of_a_file_are_those_of_the_relation_and_the_new_object(editor, snippets):
    texts = ["Rome lies on seven hills", "so it is"]
    known = _about_france(relation_id="P36", target_new_id="Q220")
    other = _about_france(relation_id="P37", target_new_id="Q220")
    report = editor.evaluate(known, {"consistency": {"texts": snippets, "tokens": 60}})
    own = _about_france(reference_texts=texts)
    assert report.means() == editor.evaluate(own, {"consistency": {"tokens": 60}}).means()
    assert editor.evaluate(other, {"consistency": {"texts": snippets}}).missing == {
        "consistency": 1
    }


def test_what_a_model_writes_is_compared_with_the_reference_texts(editor):
    def consistency(*texts):
        request = _about_france(reference_texts=texts, generation_prompts=["seven hills stand"])
        return editor.evaluate(request, {"consistency": {"tokens": 4, "seed": 1}}).means()

    alike, unlike = consistency("seven hills stand"), consistency("other words", "still others")
    assert alike["consistency"] > 0.9
    assert unlike["consistency"] == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not a file of JSON"),
        (b"[{", "is not a file of JSON"),
        (b'[{"relation_id": "P36"}]', "record 1 of .* does not have relation_id, target_id and"),
        (b'["P36"]', "record 1 of"),
        (b'[{"relation_id": 1, "target_id": 2, "samples": [{"text": 3}]}]', "record 1 of"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_reference_texts_that_cannot_be_read_is_refused(
    editor, tmp_path, content, message
):
    path = tmp_path / "texts.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        editor.evaluate(_about_france(), {"consistency": {"texts": str(path)}})
