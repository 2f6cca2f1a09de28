"""ROME as people use it: through an Editor, and through ``kedit edit``."""

import json

import pytest
import torch

from kedit_core import Editor, EditRequest, KeditError, Plugins
from kedit_core.cli import main
from kedit_core.digests import state_digest
from kedit_core.errors import ConfigError, RequestError
from kedit_core.progress import Progress
from kedit_rome.config import RomeConfig

# In the last layer, where a subject that ends the prompt is all that is heard, an untrained model
# takes an edit as well as a trained one.
QUICK = {
    "layer": 2,
    "search": {"steps": 12, "lr": 0.2, "clamp": 8.0, "decay": 0.0, "stop": 0.0},
    "context": {"lengths": [4], "count": 2},
    "statistics": {"tokens": 600, "length": 16},
}
FACTS = [
    EditRequest(prompt="We hear of {}", subject="Danielle Darrieux", target_new="the"),
    EditRequest(prompt="{} is in the city of", subject="The Space Needle", target_new="Rome"),
    EditRequest(prompt="{} plays the", subject="Toko Yasuda", target_new="violin"),
]


def nll(editor, request):
    """Return the NLL a token of the target after the prompt, in the model as it is."""
    prompt = editor.tokenizer(request.prompt)["input_ids"]
    target = editor.tokenizer(f" {request.target_new}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = editor.model(torch.tensor([[*prompt, *target]])).logits[0].float()
    said = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return -said[torch.arange(len(target)), torch.tensor(target)].mean().item()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_makes_its_target_likelier_and_undo_restores_every_bit(
    tiny, tokenizer, family, dtype
):
    editor = Editor(tiny(family, dtype=dtype), tokenizer, "rome", QUICK)
    before, unsure = state_digest(editor.model), nll(editor, FACTS[0])
    delta = editor.edit(FACTS[0])
    assert nll(editor, FACTS[0]) < unsure - 1
    assert {part.left.dtype for part in delta.parts} == {torch.float32}
    editor.undo(delta.id)
    assert state_digest(editor.model) == before


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_stacked_edits_come_out_in_any_order_bit_for_bit(tiny, tokenizer, dtype, order):
    editor = Editor(tiny("gpt2", dtype=dtype), tokenizer, "rome", QUICK)
    before = state_digest(editor.model)
    deltas = [editor.edit(fact) for fact in FACTS]
    assert [len(delta.provenance.after) for delta in deltas] == [0, 1, 2]
    for place in order:
        editor.undo(deltas[place].id)
    assert state_digest(editor.model) == before


def test_saved_edits_load_into_a_fresh_model_with_the_same_bits(tiny, tokenizer, dtype, tmp_path):
    editor = Editor(tiny("llama", dtype=dtype), tokenizer, "rome", QUICK)
    for fact in FACTS[:2]:
        editor.edit(fact)
    editor.save(tmp_path / "edits.safetensors")
    fresh = Editor(tiny("llama", dtype=dtype), tokenizer)
    loaded = fresh.load(tmp_path / "edits.safetensors")
    assert state_digest(fresh.model) == state_digest(editor.model)
    assert [delta.id for delta in loaded] == [delta.id for delta in editor.deltas]
    assert loaded[0].provenance.notes == editor.deltas[0].provenance.notes


def test_what_was_asked_and_found_stands_in_the_provenance(tiny, tokenizer):
    editor = Editor(tiny("llama"), tokenizer, "rome", {**QUICK, "seed": 7})
    provenance = editor.edit(FACTS[0]).provenance
    assert provenance.config["search"]["lr"] == 0.2
    assert provenance.config["search"]["kl"] == 0.0625  # a default, resolved
    assert provenance.seed == 7
    assert "kedit-rome" in provenance.versions
    notes = provenance.notes
    assert (notes["layer"], notes["steps"], len(notes["prefixes"])) == (2, 11, 3)
    assert 0 < notes["target_probability"] <= 1
    json.dumps(notes)


def test_a_computed_delta_can_be_computed_again_from_its_provenance(tiny, tokenizer, tmp_path):
    editor = Editor(tiny("llama"), tokenizer, "rome", QUICK)
    delta = editor.edit(FACTS[0])
    again = Editor(tiny("llama"), tokenizer, "rome", delta.provenance.config)
    assert again.edit(FACTS[0]).id == delta.id


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"layr": 1}, "layr.*did you mean 'layer'"),
        ({"search": {"step": 3}}, "step.*did you mean 'steps'"),
        ({"keys": "men"}, "men.*did you mean 'mean'"),
        ({"layer": "5"}, "expected int"),
        ({"layer": -1}, "layer"),
        ({"search": {"lr": 0.0}}, "lr"),
        ({"search": {"steps": 0}}, "steps"),
        ({"context": {"lengths": [0]}}, "lengths"),
        ({"statistics": {"tokens": 0}}, "tokens"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_anything_is_done(
    tiny, tokenizer, config, complaint
):
    with pytest.raises(ConfigError, match=complaint):
        Editor(tiny("gpt2"), tokenizer, "rome", config)


def test_a_config_object_and_a_mapping_mean_the_same(tiny, tokenizer):
    config = RomeConfig(layer=2, keys="bare")
    editor = Editor(tiny("gpt2"), tokenizer, "rome")
    mapping = {"layer": 2, "keys": "bare", "search": {"steps": 2}}
    assert editor.edit(FACTS[0], config=mapping).provenance.config["layer"] == 2
    assert editor.edit(FACTS[1], config=config).provenance.config["keys"] == "bare"


def test_several_requests_or_none_or_one_without_a_subject_are_refused(tiny, tokenizer):
    editor = Editor(tiny("gpt2"), tokenizer, "rome", QUICK)
    with pytest.raises(KeditError, match="one request at a time"):
        editor.edit(FACTS)
    with pytest.raises(RequestError, match="no request"):
        editor.edit([])
    with pytest.raises(RequestError, match="subject"):
        editor.edit(EditRequest(prompt="Two and two make", target_new="five"))


def test_the_same_edit_twice_is_refused_and_the_first_stays(tiny, tokenizer):
    editor = Editor(tiny("gpt2"), tokenizer, "rome", QUICK)
    delta = editor.edit(FACTS[0])
    held = state_digest(editor.model)
    with pytest.raises(RequestError, match="in force already"):
        editor.edit(FACTS[0])
    assert state_digest(editor.model) == held
    assert editor.deltas == (delta,)


def test_the_edited_model_is_what_evaluate_sees(tiny, tokenizer):
    editor = Editor(tiny("llama"), tokenizer, "rome", QUICK)
    before = editor.evaluate(FACTS[0], ["reliability.probability"]).means()
    editor.edit(FACTS[0])
    after = editor.evaluate(FACTS[0], ["reliability.probability"]).means()
    assert after["reliability.probability"] > 2 * before["reliability.probability"]


def test_rome_says_what_it_is():
    info = Plugins.installed().info("rome")
    assert info.kind == "weights"
    assert not info.batched
    assert info.needs == {"statistics", "gradients", "subject"}
    assert info.config is RomeConfig


def test_kedit_edit_writes_a_delta_that_an_editor_loads(tiny, tokenizer, tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "delta.safetensors"
    tiny("gpt2", dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    asked = ("--prompt", "{} is in", "--subject", "Oslo", "--target", "Rome")
    settings = tmp_path / "rome.json"
    settings.write_text(json.dumps(QUICK))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("edit", str(folder), "--method", "rome", *asked),
                *("--config", str(settings), "--set", "seed=5", "--out", str(out)),
            ]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    (delta,) = Editor.from_pretrained(folder).load(out)
    assert delta.provenance.config["layer"] == 2
    assert delta.provenance.seed == 5


class Diary(Progress):
    """Remembers which long computations were begun."""

    def __init__(self):
        self.tasks = []

    def task(self, description, total, unit=""):
        self.tasks.append(description)
        return super().task(description, total, unit)


def test_an_edit_uses_the_statistics_that_a_command_collected(tiny, tokenizer, tmp_path):
    folder = str(tmp_path / "model")
    tiny("gpt2", dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    quick = ("--tokens", "200", "--length", "16")
    with pytest.raises(SystemExit) as ended:
        main(["locate", "stats", "build", folder, "--layers", "1", *quick])
    assert ended.value.code == 0
    settings = {
        "layer": 1,
        "statistics": {"tokens": 200, "length": 16},
        "context": {"count": 0},
        "search": {"steps": 2},
    }
    diary = Diary()
    editor = Editor.from_pretrained(folder, "rome", settings, progress=diary)
    editor.edit(FACTS[1])
    assert diary.tasks == ["searching values"]
