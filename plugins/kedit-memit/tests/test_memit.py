"""MEMIT's updates against the paper's formulas, recomputed here from plain forwards; and as people use it."""

import pytest
import torch

from kedit_core import Editor, EditRequest, KeditError, Plugins, Weights, export_lora
from kedit_core.config import load_config
from kedit_core.digests import state_digest
from kedit_core.errors import ConfigError
from kedit_core.presets import presets_of
from kedit_core.progress import Progress
from kedit_locate import values, writing_kernels
from kedit_locate.config import Search, Statistics
from kedit_locate.moments import moments
from kedit_locate.parts import read_parts
from kedit_locate.rows import edit_rows
from kedit_locate.values import search_values
from kedit_memit.config import MemitConfig

SEARCH = {"steps": 6, "direction": "adam", "lr": 0.2, "clamp": 2.0, "stop": 0.0}
TEXT = {"metric": "moments", "tokens": 600, "length": 16, "short": None}
ORIGINAL = {
    "layers": [0, 1, 2],
    "penalty": 3.0,
    "keys": "half",
    "history": "none",
    "passes": 1,
    "search": SEARCH,
    "statistics": TEXT,
    "context": {"lengths": [4], "count": 3},
}


def edited(model, tokenizer, facts, **changes):
    editor = Editor(model, tokenizer, "memit", {**ORIGINAL, **changes})
    return editor, editor.edit(facts)


def whole(part):
    return part.left @ part.right if hasattr(part, "left") else part.update


def states(model, path, row):
    """Return what a module reads and writes at a row's lookup token, from one plain forward."""
    seen = []

    def look(_, args, kwargs, output):
        read = args[0] if args else kwargs["hidden_states"]
        seen.append((read, output if isinstance(output, torch.Tensor) else output[0]))

    handle = model.get_submodule(path).register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]), use_cache=False)
    handle.remove()
    read, written = (one.reshape(len(row.ids), -1)[row.lookup].clone() for one in seen[0])
    return read, written


def test_the_original_settings_are_the_papers_formula(model, tokenizer, facts):
    editor, delta = edited(model, tokenizer, facts)
    layout, notes = editor.weights.layout, delta.provenance.notes
    editor.undo()
    edits = [edit_rows(tokenizer, fact, notes["prefixes"]) for fact in facts]
    site = layout.layer(2).path
    values = search_values(model, edits, site, Search(**SEARCH), Progress()).value
    downs = [layout.down_of(layer) for layer in (0, 1, 2)]
    about = (Statistics(**TEXT), editor.weights, editor.cache, Progress())
    second = [one.matrix.double() for one in moments(model, tokenizer, downs, *about)]
    for place, (down, moment, part) in enumerate(zip(downs, second, delta.parts, strict=True)):
        keys = []
        for edit in edits:
            bare, *prefixed = (states(model, down.path, row)[0] for row in edit.rewrites)
            keys.append(bare / 2 + torch.stack(prefixed).mean(0) / 2)
        keys = torch.stack(keys)  # (requests, in_features)
        now = torch.stack([states(model, site, edit.rewrites[0])[1] for edit in edits])
        share = (values - now) / (3 - place)
        system = ORIGINAL["penalty"] * moment + keys.T @ keys
        expected = share.T @ keys @ torch.linalg.inv(system)  # (out_features, in_features)
        torch.testing.assert_close(whole(part), expected, rtol=1e-7, atol=1e-9)
        editor.weights.matrix(down.weight).add_(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_batch_is_written_and_every_bit_comes_back(tiny, tokenizer, facts, family, dtype):
    model = tiny(family, dtype=dtype)
    before = state_digest(model)
    editor, delta = edited(model, tokenizer, facts, keys="both", passes=3, history="exact")
    assert state_digest(model) != before
    assert [part.weight for part in delta.parts] == [
        editor.weights.layout.down_of(layer).weight for layer in (0, 1, 2)
    ]
    editor.undo()
    assert state_digest(model) == before


def test_equal_inputs_give_equal_deltas(tiny, tokenizer, facts):
    ids = {edited(tiny("llama"), tokenizer, facts, passes=2)[1].id for _ in range(2)}
    assert len(ids) == 1


def test_one_request_of_a_batch_can_be_taken_out_as_if_it_had_never_been_in(tiny, tokenizer, facts):
    editor, delta = edited(tiny("llama"), tokenizer, facts)
    editor.remove(facts[1].id)
    alone, _ = edited(tiny("llama"), tokenizer, [facts[0], facts[2]])
    assert state_digest(editor.model) == state_digest(alone.model)
    assert editor.deltas[0].id != delta.id


def test_a_stream_counts_the_keys_of_earlier_edits_and_forgets_those_that_are_undone(
    tiny, tokenizer, facts
):
    def stream(*which, history="exact"):
        editor = Editor(
            tiny("gpt2"), tokenizer, "memit", {**ORIGINAL, "history": history, "keys": "both"}
        )
        return editor, [editor.edit(facts[n]) for n in which]

    editor, deltas = stream(0, 1, 2)
    down = editor.weights.layout.down_of(0).path
    assert [len(delta.carry[down]) for delta in deltas] == [2, 2, 2]
    _, without = stream(0, 1, 2, history="none")
    assert deltas[0].id == without[0].id
    assert deltas[1].id != without[1].id
    editor.undo(deltas[0].id, recompute=True)
    again, _ = stream(1, 2)
    assert state_digest(editor.model) == state_digest(again.model)


def test_the_notes_say_what_was_reached_and_at_what_cost(tiny, tokenizer, facts):
    _, delta = edited(tiny("llama"), tokenizer, facts, passes=2, until=1.0)
    notes = delta.provenance.notes
    assert len(notes["target_probability"]) == len(notes["target_nll"]) == len(facts)
    assert [one["edits"] for one in notes["passes"]] == [3, 3]
    assert notes["layers"] == [0, 1, 2]
    assert len(notes["ridge"]) == 3


def test_every_preset_fits_the_settings_and_says_where_it_comes_from():
    import kedit_memit

    found = presets_of(kedit_memit)
    assert len(found) == 5
    for preset in found:
        config = load_config(MemitConfig, preset.config)
        assert preset.source
        assert max(config.layers) < preset.layers


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [-1, 0]])
def test_layers_that_make_no_sense_are_refused(tiny, tokenizer, layers):
    with pytest.raises(ConfigError, match="layers"):
        Editor(tiny("gpt2"), tokenizer, "memit", {"layers": layers})


def test_a_layer_that_is_not_there_is_refused_and_nothing_changes(tiny, tokenizer, facts):
    model = tiny("gpt2")
    before = state_digest(model)
    with pytest.raises(KeditError, match="layers 0 to 2"):
        edited(model, tokenizer, facts, layers=[0, 7])
    assert state_digest(model) == before


def test_memit_is_listed_as_batched_and_continual():
    info = Plugins.installed().info("memit")
    assert info.batched
    assert info.continual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_kernel_writes_the_bits_that_core_writes(
    tiny, tokenizer, facts, family, dtype, monkeypatch
):
    kernel, written = writing_kernels.low_rank_write, []

    def counted(out, *given):
        kernel(out, *given)
        written.append(out.shape)

    monkeypatch.setattr(writing_kernels, "low_rank_write", counted)
    editor, delta = edited(tiny(family, dtype=dtype), tokenizer, facts)
    assert len(written) == len(delta.parts) == 3
    other = tiny(family, dtype=dtype)
    Weights(other).add(delta)
    assert state_digest(editor.model) == state_digest(other)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_exported_adapter_merges_to_the_bits_that_were_written(
    tiny, tokenizer, facts, family, tmp_path
):
    editor, _ = edited(tiny(family, dtype=torch.float32), tokenizer, facts)
    assert export_lora(editor, tmp_path / "adapter").exact


def test_an_edit_that_is_made_again_is_cut_as_it_was_when_memory_was_short(
    tiny, tokenizer, facts, monkeypatch
):
    def short(model, edits, most):
        if len(edits) > 1:
            raise torch.OutOfMemoryError("no memory left")
        return read_parts(model, edits, most)

    editor = Editor(tiny("llama"), tokenizer, "memit", ORIGINAL)
    first = editor.edit(facts[0])
    with monkeypatch.context() as less:
        less.setattr(values, "read_parts", short)
        second = editor.edit(facts[1:])
    cut = second.provenance.notes["sizes"]
    assert cut[0][0][1] == 1
    assert edited(tiny("llama"), tokenizer, facts[1:])[1].provenance.notes["sizes"] != cut
    editor.undo(first.id, recompute=True)
    assert editor.deltas[0].provenance.notes["sizes"] == cut


def test_edits_that_contradict_each_other_are_named_in_a_warning(tiny, tokenizer, facts, caplog):
    rival = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="guitar")
    editor = Editor(tiny("llama"), tokenizer, "memit", {**ORIGINAL, "layers": [0, 1]})
    with caplog.at_level("WARNING"):
        editor.edit(facts)
        assert not caplog.messages
        editor.undo()
        delta = editor.edit([*facts, rival])
    assert delta.provenance.notes["conflicts"]["count"] == 1
    (said,) = caplog.messages
    assert said.startswith("memit: ")
    assert all(one in said for one in ("'The capital of Norway is'", "'Lima'", "'guitar'"))
