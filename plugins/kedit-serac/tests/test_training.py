"""Training: nobody trains on the test, what is interrupted ends as if it had not been, and says how it goes."""

import json

import pytest
import torch
from attrs import evolve

from kedit_core import EditRequest
from kedit_core.errors import ConfigError, KeditError, RequestError
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_core.testing.facts import edit_of, facts
from kedit_memory.scope_files import BEST
from kedit_serac.checkpoints import LAST, read
from kedit_serac.config import ScopeTraining
from kedit_serac.plans import read_plan
from kedit_serac.shards import Source
from kedit_serac.training import LOG, Training

KEYS = {"step", "shard", "lr", "seconds", "scope/auc_val", "scope/accepted_val"} | {
    f"{name}_{suffix}"
    for name in ("loss/edit", "loss/loc", "edit/acc", "acc/pre", "acc/post")
    for suffix in ("train", "val")
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(bos=True)


@pytest.fixture
def training(tokenizer, plans, learned):
    """Return the maker of trainings that last a moment."""

    def make(
        folder, say=None, judged=(), shards=None, earlier=(), start=None, model=None, **changes
    ):
        made = plans(folder, **{"steps": 6, "validate": 2, "batch": 4, "locality": 0.3, **changes})
        scope = ScopeTraining(width=8, steps=5, wordings=3, others=1)
        return Training(
            model or tiny_model("llama", dtype=torch.float32),
            tokenizer,
            evolve(made, start=start, scope=scope),
            shards or [Source(name="facts", requests=learned)],
            judged=judged,
            say=say,
            earlier=earlier,
        )

    return make


class Stop:
    """Interrupts training at one of its validations."""

    def __init__(self, at):
        self.at, self.heard = at, 0

    def __call__(self, _):
        self.heard += 1
        if self.heard == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 2, 3])
def test_training_that_is_interrupted_ends_at_the_same_bits(training, tmp_path, at):
    whole = training(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "broken", Stop(at)).run()
    again = training(tmp_path / "broken").run(resume=True)
    assert again.classifier == whole.classifier
    for name, one in whole.weights.items():
        assert torch.equal(again.weights[name], one), name
    last = [read(tmp_path / name / LAST) for name in ("whole", "broken")]
    assert last[0].about["where"] == last[1].about["where"]
    for name, one in last[0].state.items():
        assert torch.equal(last[1].state[name], one), name


def test_the_log_speaks_the_fields_names(training, tmp_path):
    training(tmp_path).run()
    lines = [json.loads(one) for one in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line.keys() >= KEYS


def test_training_stops_when_validation_gets_no_better(training, tmp_path):
    training(tmp_path, steps=40, validate=1, patience=2, lr=10.0).run()
    lines = [json.loads(one) for one in (tmp_path / LOG).read_text().splitlines()]
    assert len(lines) < 40
    assert [line["best"] for line in lines[-2:]] == [False, False]
    best = read(tmp_path / BEST)
    assert best.about["step"] == max(line["step"] for line in lines if line["best"])


def test_the_base_stays_as_it_was(training, tmp_path):
    model = tiny_model("gpt2", dtype=torch.float32)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    grads = [one.requires_grad for one in model.parameters()]
    state = torch.get_rng_state()
    training(tmp_path, model=model).run()
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert grads == [one.requires_grad for one in model.parameters()]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_shard_replays_the_first(training, learned, tmp_path):
    first, second = (Source(name=name, requests=learned[n::2]) for n, name in enumerate("ab"))
    training(tmp_path / "one", shards=[first]).run()
    more = training(
        tmp_path / "two", shards=[second], earlier=[first], start=str(tmp_path / "one")
    ).run()
    assert more.about["shards"] == ["a", "b"]
    at_once = training(tmp_path / "both", shards=[first, second]).run()
    assert at_once.about["shards"] == ["a", "b"]


def planted(**changes):
    """Return a fact to be judged, asked for in another wording than the one to train on."""
    return EditRequest(
        **{"prompt": "Lima, of {}", "subject": "Peru", "target_new": "Oslo", **changes}
    )


@pytest.mark.parametrize(
    "judged",
    [
        [edit_of(facts()[7])],
        [planted(target_true="Vienna", subject="austria", prompt="The seat of {} is")],
        [planted(prompt="{} HAS its capital,  in", subject="Austria")],
    ],
    ids=["the same request", "other wording, same answer", "the text of a paraphrase"],
)
def test_training_on_what_is_judged_is_refused(training, tmp_path, judged):
    with pytest.raises(RequestError, match="are to be judged too"):
        training(tmp_path, judged=judged)
    assert not (tmp_path / BEST).exists()


def test_a_named_relation_is_known_in_another_wording(training, learned, edited, tmp_path):
    own = planted(prompt="In {} the seat is", target_true="Callao", extra={"relation": "capital"})
    other = planted(prompt="{}, whose capital is", extra={"relation": "Capital"})
    fine = planted(prompt="{}, whose river is", extra={"relation": "river"})
    source = Source(name="facts", requests=[*learned, own])
    with pytest.raises(RequestError, match="1 of 29 facts"):
        training(tmp_path, judged=[other], shards=[source])
    training(tmp_path, judged=[fine, *edited], shards=[source])


def test_a_folder_with_another_training_is_left_alone(training, tmp_path):
    training(tmp_path).run()
    with pytest.raises(KeditError, match="holds a training already"):
        training(tmp_path).run()
    with pytest.raises(KeditError, match="made by another plan"):
        training(tmp_path, steps=8).run(resume=True)


def test_a_damaged_checkpoint_is_said_to_be_one(training, tmp_path):
    training(tmp_path).run()
    path = tmp_path / BEST
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(KeditError, match="is damaged"):
        read(path)
    with pytest.raises(KeditError, match="there is no checkpoint"):
        read(tmp_path / "nowhere")


def test_weights_of_an_earlier_version_are_refused_in_one_sentence(training, tmp_path):
    found = training(tmp_path).run()
    older = {name: one for name, one in found.weights.items() if name != "shift"}
    with pytest.raises(KeditError, match="train it anew"):
        evolve(found, weights=older).counterfactual()


def test_a_plan_says_what_it_lacks(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('model = "atlas:llama"\n')
    with pytest.raises(ConfigError, match="requests is missing; out is missing"):
        read_plan(path)
    path.write_text('model = "m"\nrequests = ["r"]\nout = "o"\n[scope]\nstep = 3\n')
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        read_plan(path)
