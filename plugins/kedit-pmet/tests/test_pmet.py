"""PMET's updates against the paper's formulas, recomputed here from plain forwards; and as people use it."""

from math import sqrt

import pytest
import torch
from attrs import evolve
from transformers import GPTJConfig, GPTJForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from kedit_core import Editor, EditRequest, KeditError, Plugins, layout_of
from kedit_core.config import load_config
from kedit_core.digests import state_digest
from kedit_core.errors import ConfigError, ModelError
from kedit_core.presets import presets_of
from kedit_core.progress import Progress
from kedit_locate.config import Search, Statistics
from kedit_locate.moments import moments
from kedit_locate.rows import edit_rows
from kedit_locate.values import Site, search_shifts, search_values
from kedit_pmet import _pmet
from kedit_pmet._pmet import attention_of
from kedit_pmet.config import PmetConfig

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
ALONE = {
    "statistics": {"metric": "identity"},
    "penalty": 0.0,
    "context": {"count": 0},
}
"""With these an update meets a single edit's residual exactly."""


def edited(model, tokenizer, facts, **changes):
    editor = Editor(model, tokenizer, "pmet", {**ORIGINAL, **changes})
    return editor, editor.edit(facts)


def whole(part):
    return part.left @ part.right if hasattr(part, "left") else part.update


def states(model, path, row):
    """Return what a module reads and writes at a row's lookup token, from one plain forward."""
    seen = []
    look = lambda _, args, output: seen.append((args[0], output))  # noqa: E731
    handle = model.get_submodule(path).register_forward_hook(look)
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids]), use_cache=False)
    handle.remove()
    read, written = (one.reshape(len(row.ids), -1)[row.lookup].clone() for one in seen[0])
    return read, written


def sites_of(model, layer, **attention):
    own = layout_of(model).layer(layer)
    return [Site(path=own.attention_out.path, **attention), Site(path=own.down.path)]


@pytest.mark.parametrize("shares", ["root", "linear"])
def test_the_original_settings_are_the_papers_formula(model, tokenizer, facts, shares):
    about = {"attention_clamp": 0.5, "attention_decay": 0.3, "shares": shares}
    editor, delta = edited(model, tokenizer, facts, **about)
    layout, prefixes = editor.weights.layout, delta.provenance.notes["prefixes"]
    editor.undo()
    edits = [edit_rows(tokenizer, fact, prefixes) for fact in facts]
    sites = sites_of(model, 2, clamp=0.5, decay=0.3)
    values = search_shifts(model, edits, sites, Search(**SEARCH), Progress())[1].value
    downs = [layout.down_of(layer) for layer in (0, 1, 2)]
    taken = (Statistics(**TEXT), editor.weights, editor.cache, Progress())
    second = [one.matrix.double() for one in moments(model, tokenizer, downs, *taken)]
    for place, (down, moment, part) in enumerate(zip(downs, second, delta.parts, strict=True)):
        keys = []
        for edit in edits:
            bare, *prefixed = (states(model, down.path, row)[0] for row in edit.rewrites)
            keys.append(bare / 2 + torch.stack(prefixed).mean(0) / 2)
        keys = torch.stack(keys)  # (requests, in_features)
        now = torch.stack([states(model, downs[-1].path, one.rewrites[0])[1] for one in edits])
        left = 3 - place
        residual = (values - now) / (sqrt(left) if shares == "root" else left)
        system = ORIGINAL["penalty"] * moment + keys.T @ keys
        expected = residual.T @ keys @ torch.linalg.inv(system)  # (out_features, in_features)
        torch.testing.assert_close(whole(part), expected, rtol=1e-7, atol=1e-9)
        editor.weights.matrix(down.weight).add_(expected)


def deaf(model):
    """Let no MLP hear the layers below it and attention write the same everywhere."""
    for block in model.transformer.h:
        block.mlp.c_fc.weight.zero_()
        block.attn.c_proj.weight.zero_()
    return model


def test_where_the_topmost_mlp_hears_no_layer_below_each_takes_its_root_of_all_that_is_missing(
    tiny, tokenizer
):
    fact = EditRequest(prompt="We hear of {}", subject="Norway", target_new="L")
    model = deaf(tiny("gpt2", layers=6))
    editor, delta = edited(model, tokenizer, [fact], layers=[0, 1, 2, 3, 4, 5], **ALONE)
    down = editor.weights.layout.down_of(5)
    with editor.original():
        row = edit_rows(tokenizer, fact, ("",)).rewrites[0]
        before = states(model, down.path, row)[1]
        keys = [states(model, layer.down.path, row)[0] for layer in editor.weights.layout.layers]
    missing = states(model, down.path, row)[1] - before
    assert float(missing.norm()) > 0.1
    for part, key, left in zip(delta.parts, keys, range(6, 0, -1), strict=True):
        torch.testing.assert_close(whole(part) @ key, missing / sqrt(left), rtol=1e-9, atol=1e-9)


def parallel_model(family):
    shape = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gptj":
            about = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24, "rotary_dim": 4}
            model = GPTJForCausalLM(GPTJConfig(**shape, **about, n_positions=128))
        else:
            about = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
            about |= {"intermediate_size": 24, "max_position_embeddings": 128}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **about))
    model.requires_grad_(False)
    return model.double().eval()


@pytest.mark.parametrize("family", ["gptj", "gpt_neox", "gpt2", "llama"])
def test_in_parallel_blocks_alone_the_two_shifts_move_in_lockstep(tiny, tokenizer, facts, family):
    parallel = family.startswith("gpt") and family != "gpt2"
    model = parallel_model(family) if parallel else tiny(family)
    assert layout_of(model).parallel is parallel
    edits = [edit_rows(tokenizer, fact, ("", "We hear. ")) for fact in facts]
    search = Search(steps=5, lr=0.1, clamp=1e6, decay=0.0, stop=0.0)
    attention, mlp = search_shifts(model, edits, sites_of(model, 1), search, Progress())
    assert float(mlp.shift.norm()) > 0.1
    off = float((attention.shift - mlp.shift).abs().max())
    assert off < 1e-12 if parallel else off > 1e-3


def test_with_no_room_for_the_attention_pmet_finds_what_a_search_at_the_mlp_alone_does(
    model, tokenizer, facts
):
    editor, delta = edited(model, tokenizer, facts[:1], layers=[1], attention_clamp=1e-9, **ALONE)
    (row,) = edit_rows(tokenizer, facts[0], ("",)).rewrites
    down = editor.weights.layout.down_of(1)
    written = states(model, down.path, row)[1]
    with editor.original():
        edits = [edit_rows(tokenizer, facts[0], ("",))]
        alone = search_values(model, edits, down.path, Search(**SEARCH), Progress())
    torch.testing.assert_close(written, alone.value[0], rtol=0, atol=1e-6)
    editor.undo()
    editor.close()
    _, other = edited(model, tokenizer, facts[:1], layers=[1], **ALONE)
    assert float((whole(other.parts[0]) - whole(delta.parts[0])).norm()) > 1e-2


def test_each_site_has_its_own_clamp_and_decay_and_its_norms_of_the_unedited_model(
    tiny, tokenizer, facts, monkeypatch
):
    asked = []

    def watched(model, some, sites, *others, **named):
        asked.append(sites)
        return search_shifts(model, some, sites, *others, **named)

    monkeypatch.setattr(_pmet, "search_shifts", watched)
    model = tiny("llama")
    own = layout_of(model).layer(2)
    rows = [edit_rows(tokenizer, fact, ("",)).rewrites[0] for fact in facts]
    plain = [
        torch.stack([states(model, path, row)[1].norm() for row in rows])
        for path in (own.attention_out.path, own.down.path)
    ]
    settings = {**ORIGINAL, "attention_clamp": 0.5, "attention_decay": 0.3}
    editor = Editor(model, tokenizer, "pmet", settings)
    editor.edit(facts[1:])
    editor.edit(facts[0])
    for sites, edits in zip(asked, ([1, 2], [0]), strict=True):
        assert [site.path for site in sites] == [own.attention_out.path, own.down.path]
        assert [(site.clamp, site.decay) for site in sites] == [(0.5, 0.3), (None, None)]
        for site, norm in zip(sites, plain, strict=True):
            torch.testing.assert_close(site.norm, norm[edits])


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
        settings = {**ORIGINAL, "history": history, "keys": "both"}
        editor = Editor(tiny("gpt2"), tokenizer, "pmet", settings)
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


def test_the_notes_say_where_it_was_searched_and_what_was_reached_at_what_cost(
    tiny, tokenizer, facts
):
    _, delta = edited(tiny("llama"), tokenizer, facts, passes=2, until=1.0)
    notes = delta.provenance.notes
    assert notes["attention"] == "model.layers.2.self_attn.o_proj"
    assert notes["site"] == "model.layers.2.mlp.down_proj"
    assert len(notes["target_probability"]) == len(notes["target_nll"]) == len(facts)
    assert [one["edits"] for one in notes["passes"]] == [3, 3]
    assert notes["layers"] == [0, 1, 2]
    assert len(notes["ridge"]) == 3


def test_every_preset_fits_the_settings_and_says_where_it_comes_from():
    import kedit_pmet

    found = presets_of(kedit_pmet)
    assert len(found) == 5
    for preset in found:
        config = load_config(PmetConfig, preset.config)
        assert preset.source
        assert max(config.layers) < preset.layers


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [-1, 0]])
def test_layers_that_make_no_sense_are_refused(tiny, tokenizer, layers):
    with pytest.raises(ConfigError, match="layers"):
        Editor(tiny("gpt2"), tokenizer, "pmet", {"layers": layers})


def test_a_layer_that_is_not_there_is_refused_and_nothing_changes(tiny, tokenizer, facts):
    model = tiny("gpt2")
    before = state_digest(model)
    with pytest.raises(KeditError, match="layers 0 to 2"):
        edited(model, tokenizer, facts, layers=[0, 7])
    assert state_digest(model) == before


def test_a_layer_without_attention_is_refused(tiny):
    layout = layout_of(tiny("gpt2"))
    bare = evolve(layout, layers=[evolve(one, attention_out=None) for one in layout.layers])
    with pytest.raises(ModelError, match=r"h\.1.*no attention out-projection"):
        attention_of(bare, 1)


def test_pmet_is_listed_as_batched_and_continual():
    info = Plugins.installed().info("pmet")
    assert info.batched
    assert info.continual
