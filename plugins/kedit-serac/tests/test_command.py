"""``kedit serac train`` reads a plan and its sources, and says what came out."""

import json

import pytest
import torch
from attrs import asdict

from kedit_core.cli import main
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_serac.bridged import Bridged
from kedit_serac.checkpoints import read

PLAN = """
model = "{base}"
requests = ["{facts}"]
out = "{out}"
[scope]
width = 8
steps = 5
wordings = 3
others = 1
[counterfactual]
steps = 2
batch = 4
"""


@pytest.fixture
def folders(tmp_path, learned):
    """Return a folder with two models, whose vocabularies differ, and requests."""
    for name, size in (("base", 300), ("other", 290)):
        model = tiny_model("llama", dtype=torch.float32)
        model.resize_token_embeddings(size)
        model.save_pretrained(tmp_path / name)
        byte_level_tokenizer(bos=True, vocabulary=size).save_pretrained(tmp_path / name)
    lines = []
    for one in learned:
        names = ("prompt", "subject", "target_new", "paraphrases", "locality")
        lines.append(
            json.dumps({key: one_of for key, one_of in asdict(one).items() if key in names})
        )
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.parametrize("other", [False, True], ids=["its own blocks", "another vocabulary"])
def test_a_plan_is_trained_and_its_scores_are_said(folders, other, capsys):
    plan = PLAN.format(base=folders / "base", facts=folders / "facts.jsonl", out=folders / "out")
    plan += f'model = "{folders / "other"}"\n' if other else ""
    (folders / "plan.toml").write_text(plan)
    assert run(["serac", "train", str(folders / "plan.toml"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["checkpoint"] == str(folders / "out")
    assert "edit/acc_val" in said["scores"]
    found = read(folders / "out").counterfactual()
    assert isinstance(found, Bridged) == other
    if other:
        assert len(found.sayable(None)) == 290
    assert run(["serac", "train", str(folders / "plan.toml")]) == 2
    assert "holds a training already" in capsys.readouterr().err


def test_distributed_without_torchrun_is_the_users_error(folders, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    plan = PLAN.format(base=folders / "base", facts=folders / "facts.jsonl", out=folders / "out")
    (folders / "plan.toml").write_text(plan)
    assert run(["serac", "train", str(folders / "plan.toml"), "--distributed"]) == 2
    assert "torchrun" in capsys.readouterr().err
