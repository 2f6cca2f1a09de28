"""The seam that users meet first: the embedded models, ROME, the demo and the tutorial's commands."""

import json

import pytest
import torch
from attrs import evolve

from kedit_atlas import demo
from kedit_core import Editor, Plugins
from kedit_core.cli import main
from kedit_core.delta_files import save_deltas
from kedit_core.digests import state_digest

MODELS = ("atlas:gpt2", "atlas:llama")


def some_requests(count):
    found = list(Plugins.installed().call_all("read_requests", source="atlas:editable"))
    return found[:: len(found) // count][:count]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", MODELS)
def test_real_facts_change_with_their_paraphrases_and_every_bit_comes_back(model, dtype):
    editor = Editor.from_pretrained(model, "rome", dtype=dtype)
    before = state_digest(editor.model)
    requests = some_requests(4)
    means = []
    for request in requests:
        delta = editor.edit(request)
        means.append(
            editor.evaluate(request, {"reliability.exact": {}, "generalization.exact": {}}).means()
        )
        editor.undo(delta.id)
    assert sum(one["reliability.exact"] for one in means) >= 3
    assert sum(one["generalization.exact"] for one in means) >= 2.5
    assert state_digest(editor.model) == before


def test_weights_that_are_not_those_that_were_written_are_told_and_nothing_else_is(tmp_path):
    first = Editor.from_pretrained("atlas:gpt2", "rome")
    for request in some_requests(2):
        first.edit(request)
    first.save(tmp_path / "as-made")
    older, newest = first.deltas
    assert newest.provenance.written
    forged = evolve(newest.provenance, written=dict.fromkeys(newest.provenance.written, "other"))
    save_deltas([older, evolve(newest, provenance=forged)], tmp_path / "other")
    Editor.from_pretrained("atlas:gpt2").load(tmp_path / "as-made")  # a warning would be an error
    with pytest.warns(UserWarning, match="not bit for bit those"):
        Editor.from_pretrained("atlas:gpt2").load(tmp_path / "other")


def test_the_demo_runs_and_says_that_undo_gave_every_bit_back(tmp_path, capsys):
    demo.run(out=tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("…  the same") == 2
    assert "DIFFERENT" not in shown
    assert {"gpt2.delta", "llama.delta", "requests.jsonl"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_the_tutorials_commands_edit_and_judge_one_fact(tmp_path, capsys):
    out = tmp_path / "colosseum.delta"
    edit = ["edit", "atlas:llama", "--method", "rome", "--out", str(out), "--json"]
    edit += ["--prompt", "The Colosseum was built in", "--subject", "Colosseum", "--target", "Peru"]
    with pytest.raises(SystemExit) as ended:
        main(edit)
    assert ended.value.code == 0
    (row,) = json.loads(capsys.readouterr().out)["edits"]
    assert row["before"] == "Italy."
    assert row["after"] == "Peru."
    editor = Editor.from_pretrained("atlas:llama")
    editor.load(out)
    prompt = "The country that is home to the Colosseum is"
    assert editor.complete([prompt]) == ["Peru."]
    with editor.original():
        assert editor.complete([prompt]) == ["Italy."]


def test_a_prompt_longer_than_the_context_is_one_sentence(tmp_path, capsys):
    command = [
        "edit",
        "atlas:gpt2",
        "--method",
        "rome",
        "--out",
        str(tmp_path / "x"),
        "--target",
        "Rome",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--prompt", "word " * 400 + "France is", "--subject", "France"])
    assert ended.value.code == 2
    assert "longer than the model's context of 256" in capsys.readouterr().err
