"""Ability on a tiny task of its own, against likelihoods worked out without the harness."""

import importlib.util
import json
import sys
from collections.abc import Mapping

import pytest
import torch

import kedit_lm_eval
from kedit_core import Delta, Dense, Editor, EditRequest, KeditError, MethodInfo, Plugins, hookimpl
from kedit_core.errors import ConfigError
from kedit_core.scoring import score_answers
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_lm_eval.tasks import Asked, asked_of

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed; pip install kedit-lm-eval[harness]",
)
REQUEST = EditRequest(prompt="It is so in", target_new="Bern")
QUESTIONS = [
    {"question": "The sun", "choices": ["shines", "rain"], "answer": 0},
    {"question": "At night it", "choices": ["is dark", "is day"], "answer": 0},
    {"question": "Snow is", "choices": ["black", "white"], "answer": 1},
    {"question": "Two and two are", "choices": ["five", "four"], "answer": 1},
    {"question": "A fish", "choices": ["swims", "flies"], "answer": 0},
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


class _Writer:
    """A method that adds noise to the head."""

    __name__ = "noise"

    @staticmethod
    @hookimpl
    def method_info():
        return MethodInfo(name="noise", summary="fake", kind="weights")

    @staticmethod
    @hookimpl
    def compute_delta(model, batch):
        source = torch.Generator().manual_seed(0)
        head = model.lm_head.weight
        part = Dense(
            weight="lm_head.weight", update=torch.randn(head.shape, generator=source).to(head)
        )
        return Delta(method="noise", requests=batch.requests, parts=[part])


@pytest.fixture
def editor():
    torch.set_num_threads(1)
    plugins = Plugins()
    plugins.register(kedit_lm_eval, "lm-eval")
    plugins.register(_Writer, "noise")
    return Editor(tiny_model("llama"), byte_level_tokenizer(bos=True), "noise", plugins=plugins)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Return a folder with two tasks; nothing leaves the machine."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for name, questions in (("mine", QUESTIONS), ("other", QUESTIONS[:2])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, questions)))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return tmp_path


def _share_right(editor, questions=QUESTIONS):
    """Return how often the right choice is the likeliest, blank before it, whole probabilities compared."""

    def likelihood(question, choice):
        prompt = tuple(editor.tokenizer(question)["input_ids"])
        whole = tuple(editor.tokenizer(f"{question} {choice}")["input_ids"])
        return float(
            score_answers(editor.model, [(prompt, whole[len(prompt) :])])[0].log_probs.sum()
        )

    right = 0
    for one in questions:
        found = [likelihood(one["question"], choice) for choice in one["choices"]]
        right += max(range(2), key=found.__getitem__) == one["answer"]
    return right / len(questions)


@needs_harness
def test_ability_is_what_the_model_scores_in_the_tasks(editor, tasks):
    options = {"tasks": ["mine", "other"], "include": str(tasks), "batch": 2}
    means = editor.evaluate(REQUEST, {"ability": options}).means()
    mine, other = _share_right(editor), _share_right(editor, QUESTIONS[:2])
    assert means == pytest.approx(
        {"ability": (mine + other) / 2, "ability:mine": mine, "ability:other": other}
    )


@needs_harness
def test_change_is_against_the_unedited_model(editor, tasks):
    options = {"tasks": "mine", "include": str(tasks)}
    before = _share_right(editor)
    asked = {"ability.change": options}
    assert editor.evaluate(REQUEST, asked).means()["ability.change"] == 0.0
    editor.edit(REQUEST)
    means = editor.evaluate(REQUEST, asked).means()
    assert means["ability.change"] == pytest.approx(_share_right(editor) - before)


@needs_harness
def test_a_limit_takes_the_first_questions(editor, tasks):
    options = {"tasks": "mine", "include": str(tasks), "limit": 3}
    means = editor.evaluate(REQUEST, {"ability": options}).means()
    assert means["ability"] == pytest.approx(_share_right(editor, QUESTIONS[:3]))


@needs_harness
def test_judging_leaves_model_tokenizer_chance_and_terminal_alone(editor, tasks, capfd):
    before = {name: one.clone() for name, one in editor.model.state_dict().items()}
    side, chance = editor.tokenizer.padding_side, torch.get_rng_state()
    editor.evaluate(REQUEST, {"ability": {"tasks": "mine", "include": str(tasks)}})
    after = editor.model.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert editor.tokenizer.padding_side == side
    assert torch.equal(torch.get_rng_state(), chance)
    assert capfd.readouterr() == ("", "")


@needs_harness
def test_a_task_or_a_measure_that_nobody_knows_is_refused(editor, tasks):
    options = {"tasks": "mine", "include": str(tasks), "measure": "f1"}
    with pytest.raises(ConfigError, match=r"mine has no measure 'f1' \(acc\)"):
        editor.evaluate(REQUEST, {"ability": options})
    with pytest.raises(ConfigError, match="unknown task 'mien'"):
        editor.evaluate(REQUEST, {"ability": {"tasks": "mien", "include": str(tasks)}})


def test_without_the_harness_it_says_what_to_install(editor, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(KeditError, match=r"pip install kedit-lm-eval\[harness\]"):
        editor.evaluate(REQUEST, {"ability": {"tasks": "mine"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ability needs tasks"),
        ({"tasks": ""}, "tasks must be names of tasks"),
        ({"tasks": [3]}, "tasks must be names of tasks"),
        ({"tasks": "a", "limit": 0}, "limit must be a whole number from 1 on, not 0"),
        ({"tasks": "a", "batch": True}, "batch must be a whole number"),
        ({"tasks": "a", "include": "/no/such/folder"}, "include must be a folder"),
        ({"taks": "a"}, "has no option 'taks'; did you mean 'tasks'"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_what_would(editor, options, message):
    with pytest.raises(ConfigError) as error:
        editor.evaluate(REQUEST, {"ability": options})
    assert message in str(error.value)


def test_tasks_may_be_a_list_or_words():
    expected = Asked(tasks=("a", "b"))
    assert asked_of("ability", {"tasks": "a b a"}) == asked_of("ability", {"tasks": ["a", "b"]})
    assert asked_of("ability", {"tasks": ("a", "b")}) == expected


def test_the_plugin_names_its_metrics():
    assert isinstance(kedit_lm_eval.METRICS, Mapping)
    assert set(kedit_lm_eval.METRICS) == {"ability", "ability.change"}
