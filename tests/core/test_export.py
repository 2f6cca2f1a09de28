"""What kedit exports, plain transformers and PEFT load, and it is the edited model bit for bit."""

import json
import os
import resource
import signal
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import peft
import pytest
import torch
from attrs import evolve, frozen
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kedit_core import (
    Delta,
    Dense,
    LowRank,
    MethodInfo,
    Plugins,
    Provenance,
    export_lora,
    export_merged,
    hookimpl,
)
from kedit_core.cli import main
from kedit_core.delta_files import save_deltas
from kedit_core.digests import state_digest
from kedit_core.errors import ExportError, ModelError
from kedit_core.sums import EXPORT_RANKS

# PEFT asks transformers for an attribute that was renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "qwen3", "phi3", "gemma2", "olmo2")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
OLDER_SIZES = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "rotary_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


@pytest.fixture(autouse=True)
def without_bars():
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def unedited(tokenizer, tmp_path):
    """Return what makes a folder with a random model of a family."""

    def make(family, dtype=torch.float32, **changes):
        sizes = OLDER_SIZES if family in ("gpt2", "gptj") else SIZES
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**sizes, **changes})
        folder = tmp_path / "unedited"
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 10


def random_edits(editor, ranks, dense=()):
    """Return one delta per row of ``ranks``: its rank on each layer in turn, 0 for none."""
    return [
        Delta(
            method="writer",
            requests=(),
            parts=random_parts(editor.weights.layout, row, number, dense),
        )
        for number, row in enumerate(ranks)
    ]


def random_parts(layout, row, number=0, dense=()):
    parts = []
    for place, (layer, rank) in enumerate(zip(layout.layers, row, strict=False)):
        down, seed = layer.down, 100 * number + place
        if rank:
            left = noise(down.out_features, rank, seed=seed)
            right = noise(rank, down.in_features, seed=seed + 50)
            parts.append(LowRank(weight=down.weight, left=left, right=right))
        if (number, place) in dense:
            update = noise(down.out_features, down.in_features, seed=seed)
            parts.append(Dense(weight=down.weight, update=update))
    return parts


def edit_at_random(editor, folder, ranks=((1, 1), (0, 3, 2), (5, 0, 1)), dense=()):
    """Put random deltas in force, as a file brings them."""
    put_in(editor, folder, *random_edits(editor, ranks, dense))


def put_in(editor, folder, *deltas):
    save_deltas([made_for(editor, delta) for delta in deltas], folder / "edits.delta")
    editor.load(folder / "edits.delta")


def made_for(editor, delta):
    """Return a delta that says which model it was made for, as computed ones do."""
    base = {part.weight: editor.weights.base_digests(part.weight) for part in delta.weights()}
    return evolve(delta, provenance=Provenance(base=base))


@pytest.fixture
def edited(edit_with, unedited, tmp_path):
    """Return what opens an editor on a random model of a family with random edits in force."""

    def make(family="llama", dtype=torch.float32, **edits):
        editor = edit_with(model=AutoModelForCausalLM.from_pretrained(unedited(family, dtype)))
        assert editor.model.dtype == dtype
        edit_at_random(editor, tmp_path, **edits)
        return editor

    return make


@pytest.fixture
def kedit(plugins, monkeypatch, capsys):
    """Return what runs the command line and gives its exit code and its two streams."""
    monkeypatch.setattr(Plugins, "installed", classmethod(lambda cls: plugins))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def reopened(editor):
    return AutoModelForCausalLM.from_pretrained(editor.model.name_or_path)


def merged_by_peft(editor, folder):
    return peft.PeftModel.from_pretrained(reopened(editor), folder).merge_and_unload()


def read_adapter(folder):
    """Return the settings of an adapter, and its factors (left, right) by module."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in tensors}
    pairs = {
        module: tuple(tensors[f"base_model.model.{module}.lora_{kind}.weight"] for kind in "BA")
        for module in modules
    }
    assert len(tensors) == 2 * len(pairs)
    return settings, pairs


def update_of(editor, module):
    """Return what is in force on a module, summed in float64."""
    total = torch.zeros(1, dtype=torch.float64)
    for delta in editor.deltas:
        for part in delta.weights():
            if part.weight == f"{module}.weight" and isinstance(part, LowRank):
                total = total + part.left.double() @ part.right.double()
            elif part.weight == f"{module}.weight":
                total = total + part.update.double()
    return total


# The adapter


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_merged_by_peft_is_the_edited_model_bit_for_bit(
    edited, tmp_path, logits, family, dtype
):
    editor = edited(family, dtype=dtype)
    before = state_digest(editor.model)
    done = export_lora(editor, tmp_path / "adapter")
    assert (done.rank, done.exact, done.worst_truncation) == (8, True, 0.0)
    assert len(done.differing) == 3
    assert state_digest(editor.model) == before != state_digest(reopened(editor))
    merged = merged_by_peft(editor, done.path)
    assert state_digest(merged) == before
    assert torch.equal(logits(merged), logits(editor.model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("ranks", [(200, 5, 300), (256, 320, 512), (129, 330, 257)], ids=str)
def test_modules_of_very_different_ranks_still_merge_to_the_same_bits(
    edited, tmp_path, family, dtype, ranks
):
    editor = edited(family, dtype, ranks=[ranks])
    done = export_lora(editor, tmp_path / "adapter")
    assert done.rank == next(r for r in EXPORT_RANKS if r >= max(ranks))
    merged = merged_by_peft(editor, done.path)
    # Where a library sums 320 ranks in one block and 512 in two of 256, no place for zeros will do.
    assert done.exact == (state_digest(merged) == state_digest(editor.model))
    for one, other in zip(merged.parameters(), editor.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    _, pairs = read_adapter(done.path)
    for layer, rank in zip(editor.weights.layout.layers, ranks, strict=True):
        left, right = pairs[layer.down.path]
        assert left.shape[1] == right.shape[0] == done.rank
        assert [int(factor.any(dim).sum()) for factor, dim in ((left, 0), (right, 1))] == [rank] * 2


def test_a_float64_model_gets_a_float64_adapter(edited, tmp_path):
    editor = edited(dtype=torch.float64)
    done = export_lora(editor, tmp_path / "adapter")
    assert done.exact
    assert {left.dtype for left, _ in read_adapter(done.path)[1].values()} == {torch.float64}
    assert state_digest(merged_by_peft(editor, done.path)) == state_digest(editor.model)


@pytest.mark.parametrize(
    ("ranks", "rank"),
    [
        ([(1,)], 1),
        ([(1, 0), (0, 1)], 1),
        ([(1,), (1,)], 8),
        ([(9, 1)], 16),
        ([(250, 64), (7,)], 320),
    ],
    ids=str,
)
def test_an_adapter_has_the_smallest_rank_that_runtimes_accept_and_no_patterns(
    edited, tmp_path, ranks, rank
):
    editor = edited(ranks=ranks)
    done = export_lora(editor, tmp_path / "adapter")
    settings, pairs = read_adapter(done.path)
    touched = [layer.down.path for layer in editor.weights.layout.layers][: len(ranks[0])]
    assert settings["target_modules"] == touched == list(done.differing)
    assert done.rank == settings["r"] == settings["lora_alpha"] == rank
    assert {(left.shape[1], right.shape[0]) for left, right in pairs.values()} == {(rank, rank)}
    assert settings["base_model_name_or_path"] == editor.model.name_or_path
    assert (settings["peft_type"], settings["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (settings["rank_pattern"], settings["alpha_pattern"]) == ({}, {})
    assert (settings["use_rslora"], settings["bias"]) == (False, "none")
    assert settings["modules_to_save"] is None
    assert settings["fan_in_fan_out"] is False
    assert set(settings) <= set(vars(peft.LoraConfig()))
    assert done.size == sum(file.stat().st_size for file in done.path.iterdir())
    assert done.deltas == tuple(delta.id for delta in editor.deltas)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_is_switched_off_leaves_every_bit_of_the_unedited_model(
    edited, tmp_path, logits, family, dtype
):
    editor = edited(family, dtype=dtype)
    export_lora(editor, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(reopened(editor), tmp_path / "adapter")
    with editor.original():
        plain = logits(editor.model)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    wanted = logits(editor.model)
    effect = (wanted - plain).abs().max()
    assert (logits(model) - wanted).abs().max() < effect * (1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_itself_loads_an_adapter(edited, tmp_path, logits, family):
    editor = edited(family)
    export_lora(editor, tmp_path / "adapter")
    model = reopened(editor)
    plain = logits(model)
    model.load_adapter(tmp_path / "adapter")
    assert torch.allclose(logits(model), logits(editor.model), atol=1e-5)
    model.disable_adapters()
    assert torch.equal(logits(model), plain)


def test_paths_hit_no_other_module_when_peft_shortens_them(edit_with, unedited, tmp_path):
    folder = unedited("llama", num_hidden_layers=24)
    editor = edit_with(model=AutoModelForCausalLM.from_pretrained(folder))
    edit_at_random(editor, tmp_path, [[int(place not in (1, 11)) for place in range(24)]])
    done = export_lora(editor, tmp_path / "adapter")
    assert len(read_adapter(done.path)[0]["target_modules"]) == 22
    assert state_digest(merged_by_peft(editor, done.path)) == state_digest(editor.model)


def test_paths_hit_no_module_whose_path_ends_alike(edit_with, unedited, tmp_path):
    def with_a_draft():
        model = AutoModelForCausalLM.from_pretrained(unedited("llama"))
        model.draft = nn.Module()
        model.draft.model = deepcopy(model.model)
        return model

    editor = edit_with(model=with_a_draft())
    edit_at_random(editor, tmp_path, [(1, 2, 0)])
    done = export_lora(editor, tmp_path / "adapter")
    merged = peft.PeftModel.from_pretrained(with_a_draft(), done.path).merge_and_unload()
    assert state_digest(merged) == state_digest(editor.model)


def test_maps_of_both_orientations_fit_into_one_adapter(edit_with, unedited, tmp_path):
    folder = unedited("gpt2", tie_word_embeddings=False)
    editor = edit_with(model=AutoModelForCausalLM.from_pretrained(folder))
    (delta,) = random_edits(editor, [(2, 1, 1)])
    head = LowRank(weight="lm_head.weight", left=noise(64, 3, seed=7), right=noise(3, 32, seed=8))
    put_in(editor, tmp_path, Delta(method="writer", requests=(), parts=(*delta.parts, head)))
    done = export_lora(editor, tmp_path / "adapter")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        merged = merged_by_peft(editor, done.path)
    assert state_digest(merged) == state_digest(editor.model)


def test_an_adapter_after_undo_holds_only_what_is_in_force(edited, tmp_path):
    editor = edited()
    editor.undo(editor.deltas[1].id)
    done = export_lora(editor, tmp_path / "adapter")
    assert len(done.deltas) == 2
    assert state_digest(merged_by_peft(editor, done.path)) == state_digest(editor.model)


@frozen(kw_only=True)
class NoSettings:
    """Settings of a method that has none."""


def exacter():
    """Return a method whose own kernel multiplies more exactly than PEFT."""
    module = ModuleType("exacter")

    @hookimpl
    def method_info():
        return MethodInfo(name="exacter", summary="fake", kind="weights", config=NoSettings)

    @hookimpl
    def compute_delta(batch, weights):
        parts = random_parts(weights.layout, (40, 0, 40))
        return Delta(method="exacter", requests=batch.requests, parts=parts)

    @hookimpl
    def apply_delta(delta, weights):
        def write(out, base, left, right):
            out.copy_(base.double() + left.double() @ right.double())

        return weights.add(delta, write=write)

    module.method_info = method_info
    module.compute_delta, module.apply_delta = compute_delta, apply_delta
    return module


def test_an_adapter_that_peft_merges_to_other_bits_says_so(
    unedited, edit_with, facts, plugins, kedit, tmp_path
):
    plugins.register(exacter())
    editor = edit_with(model=AutoModelForCausalLM.from_pretrained(unedited("llama")))
    editor.edit(facts(1), "exacter")
    editor.save(tmp_path / "edits.delta")
    done = export_lora(editor, tmp_path / "adapter")
    assert not done.exact
    assert done.worst_truncation == 0.0
    merged = merged_by_peft(editor, done.path).state_dict()
    differing = {
        path: int((merged[f"{path}.weight"] != editor.model.get_parameter(f"{path}.weight")).sum())
        for path in done.differing
    }
    assert done.differing == differing
    assert min(differing.values()) > 0
    loaded = AutoModelForCausalLM.from_pretrained(export_merged(editor, tmp_path / "merged").path)
    assert state_digest(loaded) == state_digest(editor.model)
    given = ("export", editor.model.name_or_path, "--delta", tmp_path / "edits.delta")
    code, said, _ = kedit(*given, "--to", "lora", "--out", tmp_path / "again")
    assert code == 0
    assert "2 of 2 modules differ from the edited model in last bits" in said


# What does not fit into an adapter


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_truncated_adapter_is_the_best_of_its_rank_and_tells_its_error(edited, tmp_path, family):
    editor = edited(family, ranks=[(7, 4, 3), (6, 0, 5)], dense={(1, 2)})
    done = export_lora(editor, tmp_path / "adapter", rank=8)
    downs = [layer.down.path for layer in editor.weights.layout.layers]
    assert list(done.truncation) == downs
    _, pairs = read_adapter(done.path)
    for place, path in enumerate(downs):
        total = update_of(editor, path)
        singular = torch.linalg.svdvals(total)
        best = float(singular[8:].norm() / singular.norm())
        left, right = (factor.double() for factor in pairs[path])
        reached = float((total - left @ right).norm() / total.norm())
        if place == 1:
            assert done.truncation[path] == 0.0
            assert done.differing[path] == 0
        else:
            assert 0.01 < best < 1
            assert done.truncation[path] == pytest.approx(best, rel=1e-5)
            assert done.differing[path] > 0
        assert reached == pytest.approx(done.truncation[path], abs=1e-6)
    assert done.worst_truncation == max(done.truncation.values())
    assert not done.exact
    merged = merged_by_peft(editor, done.path)
    for path in downs:
        found, wanted = (one.get_parameter(f"{path}.weight") for one in (merged, editor.model))
        allowed = done.truncation[path] * update_of(editor, path).norm() + 1e-5
        assert (found - wanted).norm() <= allowed


def test_a_rank_that_holds_everything_truncates_nothing(edited, tmp_path):
    editor = edited()
    done = export_lora(editor, tmp_path / "adapter", rank=64)
    assert (done.rank, done.exact, done.worst_truncation) == (64, True, 0.0)
    assert state_digest(merged_by_peft(editor, done.path)) == state_digest(editor.model)


def test_a_dense_update_fits_into_a_rank_as_large_as_its_matrix(edited, tmp_path):
    editor = edited(dense={(0, 0), (1, 1)}, ranks=[(0, 600), (0, 2)])
    done = export_lora(editor, tmp_path / "adapter", rank=32)
    assert 0 < done.worst_truncation < 1e-6
    done = export_lora(editor, tmp_path / "wider", rank=128)
    assert done.worst_truncation < 1e-6
    merged, path = merged_by_peft(editor, done.path), "model.layers.1.mlp.down_proj.weight"
    found, wanted = (one.get_parameter(path) for one in (merged, editor.model))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_updates_that_cancel_are_truncated_without_error(edit_with, unedited, tmp_path):
    editor = edit_with(model=AutoModelForCausalLM.from_pretrained(unedited("llama")))
    first, other = (layer.down.weight for layer in editor.weights.layout.layers[:2])
    update, left = noise(32, 48, seed=1), noise(32, 1, seed=2)
    parts = [Dense(weight=first, update=update), Dense(weight=first, update=-update)]
    parts += [LowRank(weight=other, left=left, right=noise(1, 48, seed=3))]
    put_in(editor, tmp_path, Delta(method="writer", requests=(), parts=parts))
    assert export_lora(editor, tmp_path / "adapter", rank=1).truncation == {
        first.removesuffix(".weight"): 0.0,
        other.removesuffix(".weight"): 0.0,
    }


@pytest.mark.parametrize(
    ("options", "rank", "complaint"),
    [
        ({"dense": {(0, 1)}}, None, r"layers\.1\.mlp\.down_proj.*dense update.*give a rank"),
        ({"ranks": [(1, 300), (1, 213)]}, None, r"layers\.1.*rank 513 together.* end at 512.*rank"),
        ({}, 7, r"rank 7: runtimes accept 1, 8, 16, 32, 64, 128, 256, 320, 512"),
        ({}, 1024, r"rank 1024: runtimes accept"),
        ({}, 0, r"rank 0: runtimes accept"),
    ],
)
def test_what_fits_into_no_adapter_is_refused(edited, tmp_path, options, rank, complaint):
    editor = edited(**options)
    before = state_digest(editor.model)
    with pytest.raises(ExportError, match=complaint):
        export_lora(editor, tmp_path / "out", rank)
    assert not (tmp_path / "out").exists()
    assert state_digest(editor.model) == before


@pytest.mark.parametrize(
    ("tied", "weight", "complaint"),
    [
        (
            True,
            "lm_head.weight",
            r"tied \(transformer\.wte\.weight, lm_head\.weight\).*merged checkpoint",
        ),
        (False, "transformer.wte.weight", "of type Embedding.*linear maps.*merged checkpoint"),
    ],
)
def test_a_weight_that_is_tied_or_no_linear_map_goes_into_a_checkpoint_only(
    edit_with, unedited, tmp_path, tied, weight, complaint
):
    folder = unedited("gpt2", tie_word_embeddings=tied)
    editor = edit_with(model=AutoModelForCausalLM.from_pretrained(folder), allow_tied=True)
    part = Dense(weight=weight, update=noise(64, 32, seed=3))
    put_in(editor, tmp_path, Delta(method="writer", requests=(), parts=[part]))
    with pytest.raises(ExportError, match=complaint):
        export_lora(editor, tmp_path / "adapter", rank=8)
    done = export_merged(editor, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(done.path)
    assert state_digest(loaded) == state_digest(editor.model)
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied


# The checkpoint


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_the_edited_model_bit_for_bit(
    edited, tmp_path, logits, tokenizer, family, dtype
):
    editor = edited(family, dtype=dtype)
    editor.model.generation_config.max_length = 33
    before = state_digest(editor.model)
    done = export_merged(editor, tmp_path / "merged")
    assert (done.kind, done.rank, done.exact) == ("merged", None, True)
    loaded = AutoModelForCausalLM.from_pretrained(done.path)
    assert loaded.dtype == dtype
    assert state_digest(loaded) == before != state_digest(reopened(editor))
    assert torch.equal(logits(loaded), logits(editor.model))
    assert loaded.generation_config.max_length == 33
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (family in ("gpt2", "gemma2"))
    again = AutoTokenizer.from_pretrained(done.path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template


def test_a_checkpoint_in_pieces_is_the_same_model(edited, tmp_path):
    editor = edited()
    done = export_merged(editor, tmp_path / "merged", shard_size="20KB")
    assert len(list(done.path.glob("model-*.safetensors"))) > 2
    assert (done.path / "model.safetensors.index.json").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(done.path)
    assert state_digest(loaded) == state_digest(editor.model)


def test_a_model_that_came_in_pieces_is_exported_too(edited, edit_with, tmp_path):
    first = edited()
    folder = export_merged(first, tmp_path / "pieces", shard_size="20KB").path
    editor = edit_with(model=AutoModelForCausalLM.from_pretrained(folder))
    edit_at_random(editor, tmp_path)
    done = export_merged(editor, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(done.path)
    assert state_digest(loaded) == state_digest(editor.model) != state_digest(first.model)


def test_an_export_leaves_the_model_and_its_settings_as_they_were(edited, tmp_path, state_of):
    editor = edited()
    editor.model.config.architectures = None
    before, settings = state_of(editor.model), deepcopy(vars(editor.model.config))
    export_merged(editor, tmp_path / "merged")
    export_lora(editor, tmp_path / "adapter")
    assert state_of(editor.model) == before
    assert str(vars(editor.model.config)) == str(settings)


@pytest.mark.parametrize("export", [export_merged, export_lora])
def test_a_compiled_model_is_exported_like_the_one_inside(edit_with, unedited, tmp_path, export):
    model = AutoModelForCausalLM.from_pretrained(unedited("llama"))
    editor = edit_with(model=torch.compile(model, backend="eager"))
    edit_at_random(editor, tmp_path)
    done = export(editor, tmp_path / "out")
    if done.kind == "merged":
        loaded = AutoModelForCausalLM.from_pretrained(done.path)
    else:
        loaded = merged_by_peft(editor, done.path)
    assert state_digest(loaded) == state_digest(model)


def test_a_checkpoint_without_one_edit_is_the_model_that_never_had_it(edited, edit_with, tmp_path):
    editor = edited()
    gone = editor.deltas[1]
    rest = [delta for delta in editor.deltas if delta is not gone]
    editor.undo(gone.id)
    export_merged(editor, tmp_path / "merged")
    fresh = edit_with(model=reopened(editor))
    put_in(fresh, tmp_path, *rest)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert state_digest(loaded) == state_digest(fresh.model)


# What cannot be exported at all

BOTH = pytest.mark.parametrize("export", [export_merged, export_lora])


@BOTH
@pytest.mark.parametrize("method", ["memory", "shrinking"])
def test_a_memory_is_refused_with_what_to_use_instead(edit_with, facts, tmp_path, export, method):
    editor = edit_with("writer")
    editor.edit(facts(1))
    editor.edit(facts(1, start=1), method)
    with pytest.raises(
        ExportError, match=rf"'{method}' keeps its edits beside .*from_pretrained\(MODEL\)\.load"
    ):
        export(editor, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    editor.undo()
    assert export(editor, tmp_path / "out").exact


@BOTH
def test_nothing_in_force_is_nothing_to_export(edited, tmp_path, export):
    editor = edited()
    while editor.deltas:
        editor.undo()
    with pytest.raises(ExportError, match="no edit is in force"):
        export(editor, tmp_path / "out")


@BOTH
def test_a_model_that_shows_its_original_is_not_exported_as_edited(edited, tmp_path, export):
    editor = edited("gpt2")
    with editor.original(), pytest.raises(ExportError, match="inside original"):
        export(editor, tmp_path / "out")
    assert export(editor, tmp_path / "out").exact


@BOTH
@pytest.mark.parametrize("loaded_by", ["peft", "transformers"])
def test_a_model_that_carries_an_adapter_is_refused_until_it_is_merged(
    edited, edit_with, tmp_path, export, loaded_by
):
    editor = edited()
    export_lora(editor, tmp_path / "adapter")
    model = reopened(editor)
    if loaded_by == "peft":
        wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    else:
        model.load_adapter(tmp_path / "adapter")
    other = edit_with(model=model)
    with pytest.raises(ModelError, match=r"carries a PEFT adapter; merge_and_unload\(\)"):
        export(other, tmp_path / "out")
    if loaded_by == "peft":
        other.close()
        merged = edit_with(model=wrapped.merge_and_unload())
        edit_at_random(merged, tmp_path)
        assert export(merged, tmp_path / "out").exact


@BOTH
def test_what_is_there_already_is_never_overwritten(edited, tmp_path, export):
    editor = edited()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(ExportError, match=r"full: cannot be written \(.*folder .*not empty"):
        export(editor, tmp_path / "full")
    with pytest.raises(ExportError, match=r"notes: cannot be written \(.*file of this name"):
        export(editor, tmp_path / "full" / "notes")
    assert (tmp_path / "full" / "notes").read_text() == "mine"
    assert names(tmp_path / "full") == {"notes"}
    (tmp_path / "empty").mkdir()
    assert export(editor, tmp_path / "empty").path == tmp_path / "empty"
    assert export(editor, tmp_path / "new" / "and" / "deep").exact


@BOTH
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_the_files_of_an_export_have_the_mode_of_any_new_file(edited, tmp_path, export, mask):
    editor = edited()
    before = os.umask(mask)
    try:
        out = export(editor, tmp_path / "out").path
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o666 & ~mask}
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


@BOTH
def test_an_export_stopped_by_ctrl_c_leaves_nothing(edited, tmp_path, export, monkeypatch):
    editor = edited()
    before, there = state_digest(editor.model), names(tmp_path)
    write = Path.write_text
    begun = []

    def interrupt(path, *arguments, **options):
        begun.extend(path.parent.iterdir())
        os.kill(os.getpid(), signal.SIGINT)
        return write(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", interrupt)
        patched.setattr(editor.tokenizer, "save_pretrained", lambda to: interrupt(to / "x", ""))
        with pytest.raises(KeyboardInterrupt):
            export(editor, tmp_path / "out")
    assert any(path.suffix == ".safetensors" for path in begun)
    assert names(tmp_path) == there
    assert state_digest(editor.model) == before
    assert export(editor, tmp_path / "out").exact


@contextmanager
def full_disk(bytes_left):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@BOTH
def test_a_full_disk_is_one_sentence_and_leaves_nothing(edited, tmp_path, export):
    editor = edited()
    there = names(tmp_path)
    with full_disk(3000), pytest.raises(ExportError, match="out: cannot be written") as caught:
        export(editor, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == there


def names(folder):
    return {path.name for path in folder.iterdir()}


# The command


@pytest.fixture
def at_hand(edited, tmp_path):
    """Return what makes the arguments of an export, and the editor that they are to give again."""

    def make(family="llama", **edits):
        editor = edited(family, **edits)
        folder = editor.model.name_or_path
        return editor, ("export", folder, "--delta", tmp_path / "edits.delta")

    return make


def test_a_checkpoint_from_the_command_line_is_the_edited_model(kedit, at_hand, tmp_path):
    editor, given = at_hand(dtype=torch.bfloat16)
    out = tmp_path / "merged"
    code, said, err = kedit(*given, "--to", "merged", "--out", out)
    assert (code, err) == (0, "")
    assert f"checkpoint with 3 edits in {out} (" in said
    assert f"AutoModelForCausalLM.from_pretrained({str(out)!r})" in said
    assert f"vllm serve {out}" in said
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert state_digest(loaded) == state_digest(editor.model)


def test_an_adapter_from_the_command_line_says_how_it_is_loaded_and_served(
    kedit, at_hand, tmp_path
):
    editor, given = at_hand(dtype=torch.bfloat16)
    out = tmp_path / "adapter"
    code, said, err = kedit(*given, "--to", "lora", "--out", out)
    assert (code, err) == (0, "")
    assert f"adapter of rank 8 with 3 edits in {out} (" in said
    assert "merged by PEFT it is the edited model bit for bit (measured here)" in said
    wanted = f"--enable-lora --max-lora-rank 8 --lora-modules adapter={out}"
    assert f"vLLM:   vllm serve {editor.model.name_or_path} {wanted}\n" in said
    known: dict = {}
    for line in said.splitlines():
        if line.startswith("load:"):
            exec(line.removeprefix("load:").strip(), known)
    assert state_digest(known["model"]) == state_digest(editor.model)


def test_deltas_of_several_files_are_exported_in_their_order(kedit, at_hand, tmp_path):
    editor, given = at_hand()
    files = []
    for number, delta in enumerate(editor.deltas):
        files += ["--delta", tmp_path / f"{number}.delta"]
        save_deltas([delta], files[-1])
    code, _, err = kedit(*given[:2], *files, "--to", "merged", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert state_digest(loaded) == state_digest(editor.model)


def test_an_export_in_json_is_one_document(kedit, at_hand, tmp_path):
    editor, given = at_hand()
    out = tmp_path / "adapter"
    code, said, err = kedit(*given, "--to", "lora", "--out", out, "--json")
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert found["deltas"] == [delta.id for delta in editor.deltas]
    modules = [layer.down.path for layer in editor.weights.layout.layers]
    assert found["differing"] == dict.fromkeys(modules, 0)
    assert found["truncation"] == dict.fromkeys(modules, 0.0)
    kept = {key: found[key] for key in ("to", "out", "dtype", "exact", "rank", "worst_truncation")}
    assert kept == {
        "to": "lora",
        "out": str(out),
        "dtype": "float32",
        "exact": True,
        "rank": 8,
        "worst_truncation": 0.0,
    }
    assert found["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert "--max-lora-rank 8" in found["serve"]
    known: dict = {}
    exec("\n".join(found["load"]), known)
    assert state_digest(known["model"]) == state_digest(editor.model)
    code, said, _ = kedit(*given, "--to", "merged", "--out", tmp_path / "merged", "--json")
    found = json.loads(said)
    assert (found["to"], found["rank"], found["exact"]) == ("merged", None, True)
    exec("\n".join(found["load"]), known)
    assert state_digest(known["model"]) == state_digest(editor.model)
    assert found["serve"] == f"vllm serve {tmp_path / 'merged'}"


def test_a_truncated_export_prints_what_was_left_out_of_each_module(kedit, at_hand, tmp_path):
    _, given = at_hand(ranks=[(12, 3)])
    out = tmp_path / "adapter"
    code, said, err = kedit(*given, "--to", "lora", "--out", out, "--rank", 8)
    assert (code, err) == (0, "")
    found = json.loads(kedit(*given, "--to", "lora", "--out", f"{out}-2", "--rank", 8, "--json")[1])
    worst = found["worst_truncation"]
    assert 0.01 < worst < 1
    assert f"truncated to rank 8, at the worst by {worst:.2e} of an update" in said
    assert f"  model.layers.0.mlp.down_proj: {worst:.2e}\n" in said
    assert "layers.1" not in said
    assert "bit for bit" not in said
    assert found["exact"] is False


def test_an_adapter_of_gpt2_says_that_vllm_does_not_serve_it(kedit, at_hand, tmp_path):
    _, given = at_hand("gpt2")
    code, said, _ = kedit(*given, "--to", "lora", "--out", tmp_path / "out")
    assert code == 0
    assert "vLLM:   takes no adapters for gpt2; export --to merged for it" in said
    assert "--max-lora-rank" not in said


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--to", "loar"], "kedit: --to loar: merged and lora are known; did you mean 'lora'"),
        (["--to", "merged", "--rank", "8"], "kedit: --rank belongs to --to lora"),
        (["--to", "lora", "--rank", "9"], "kedit: rank 9: runtimes accept 1, 8, 16"),
        (["--to", "lora", "--out", "FULL"], "kedit: FULL: cannot be written (there is a folder"),
        (["--to", "lora", "--delta", "nowhere"], "kedit: nowhere: there is no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_mistake_in_an_export_is_one_sentence(
    kedit, at_hand, tmp_path, monkeypatch, more, complaint
):
    _, given = at_hand()
    monkeypatch.chdir(tmp_path)
    Path("FULL").mkdir()
    Path("FULL/notes").touch()
    code, out, err = kedit(*given, *(["--out", "new"] if "--out" not in more else []), *more)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(complaint)
    assert not Path("new").exists()
