"""Models in the state that people bring them in: hooked, adapted, compiled, training, in half precision."""

import json
import warnings
from collections import OrderedDict

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from kedit_core import Editor, TensorCache, Weights, encode, layout_of
from kedit_core.cli import main
from kedit_core.delta_files import load_deltas
from kedit_core.digests import digest, state_digest
from kedit_core.errors import DeltaError, ModelError
from kedit_core.scoring import score_answers
from kedit_core.tokens import encode_target
from kedit_locate.capture import replaced_output
from kedit_rome.together import Asked, score_together
from tests.families import FACT, QUICK, build_loud, byte_tokenizer, nll

FAMILIES = ("gpt2", "llama")
LAYER = 1
DOWN = {
    "gpt2": f"transformer.h.{LAYER}.mlp.c_proj",
    "llama": f"model.layers.{LAYER}.mlp.down_proj",
}
SETTINGS = {**QUICK, "layer": LAYER, "context": {"count": 0}}


pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT asks for it
)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def edit_of(tokenizer, tmp_path):
    """Return what opens an editor on a model, with ROME set to be quick."""

    def opened(model, **options):
        options = {"cache": TensorCache(tmp_path / "cache"), **options}
        return Editor(model, tokenizer, "rome", SETTINGS, **options)

    return opened


@torch.no_grad()
def logits(model, tokenizer):
    ids = torch.tensor([tokenizer(FACT.prompt)["input_ids"]])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def hooks_of(model):
    return [
        (path, name, list(found.items()))
        for path, module in model.named_modules()
        for name, found in vars(module).items()
        if isinstance(found, OrderedDict) and name.endswith(("hooks", "hooks_with_kwargs"))
    ]


# Hooks.


def test_hooks_of_the_user_stay_fire_and_are_no_damage(family, tokenizer, edit_of):
    model, fired = build_loud(family), []
    model.get_submodule(DOWN[family]).register_forward_pre_hook(lambda *_: fired.append("read"))
    model.get_submodule(DOWN[family]).register_forward_hook(lambda *_: fired.append("wrote"))
    model.register_forward_hook(lambda *_, **__: fired.append("model"), with_kwargs=True)
    hooks, before = hooks_of(model), state_digest(model)
    editor = edit_of(model)
    editor.edit(FACT)
    assert set(fired) == {"read", "wrote", "model"}
    assert hooks_of(model) == hooks
    fired.clear()
    logits(model, tokenizer)
    assert fired == ["read", "wrote", "model"]
    editor.undo()
    assert hooks_of(model) == hooks
    assert state_digest(model) == before


def test_an_edit_is_made_for_the_model_as_the_users_hook_leaves_it(family, tokenizer, edit_of):
    model = build_loud(family)
    plain = edit_of(build_loud(family)).edit(FACT)
    steer = torch.linspace(-1, 1, 32)
    model.get_submodule(DOWN[family]).register_forward_hook(lambda _, __, output: output + steer)
    before = nll(model, tokenizer, FACT)
    delta = edit_of(model).edit(FACT)
    assert delta.id != plain.id
    assert nll(model, tokenizer, FACT) < before


# PEFT.


def adapted(family, *, kind="wrapped"):
    """Return a model with a LoRA adapter that does something, and how to read it as its user does."""
    torch.manual_seed(1)
    name = DOWN[family].partition(f".{LAYER}.")[2]
    settings = LoraConfig(r=2, target_modules=[name], fan_in_fan_out=family == "gpt2")
    model = build_loud(family)
    if kind == "wrapped":
        model = get_peft_model(model, settings)
    else:
        model.add_adapter(settings)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("kind", ["wrapped", "inside"])
def test_under_peft_an_edit_goes_into_the_base_weight_and_the_adapter_stays(
    family, kind, tokenizer, edit_of
):
    model = adapted(family, kind=kind)
    before, told = state_digest(model), logits(model, tokenizer)
    adapters = {name: digest(p) for name, p in model.named_parameters() if "lora_" in name}
    unsure = nll(model, tokenizer, FACT)
    editor = edit_of(model)
    (part,) = editor.edit(FACT).parts
    assert part.weight == f"{DOWN[family]}.base_layer.weight"
    assert nll(model, tokenizer, FACT) < unsure
    assert adapters
    assert adapters == {n: digest(p) for n, p in model.named_parameters() if "lora_" in n}
    editor.undo()
    assert state_digest(model) == before
    assert torch.equal(logits(model, tokenizer), told)


def test_under_peft_the_layout_is_that_of_the_base_model(family):
    plain, layout = layout_of(build_loud(family)), layout_of(adapted(family))
    for layer, other in zip(layout.layers, plain.layers, strict=True):
        assert layer.down.path == f"{other.down.path}.base_layer"
        assert (layer.mlp, layer.attention, layer.path) == (other.mlp, other.attention, other.path)
        assert layer.down.in_features == other.down.in_features
        assert layer.down.conv1d is other.down.conv1d
        assert layer.attention_out == other.attention_out
    assert (layout.head, layout.final_norm) == (plain.head, plain.final_norm)


def test_a_piece_named_by_hand_is_found_behind_its_adapter(family):
    named = {"down": DOWN[family].replace(f".{LAYER}.", ".{}.")}
    assert layout_of(adapted(family), named).layers == layout_of(adapted(family)).layers


def test_a_learned_prompt_is_refused_in_one_sentence(tokenizer, edit_of):
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="learned prompt, which stands in no layer"):
        edit_of(get_peft_model(build_loud("llama"), settings))


# Modes.


def test_in_train_mode_with_dropout_edits_are_deterministic_and_the_mode_stays(edit_of):
    deltas = []
    for _ in range(2):
        model = build_loud("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
        model.transformer.h[0].eval()
        modes = [module.training for module in model.modules()]
        deltas.append(edit_of(model).edit(FACT))
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert deltas[0].id == deltas[1].id
    assert deltas[0].id == edit_of(build_loud("gpt2")).edit(FACT).id


# torch.compile.


@pytest.fixture(params=["wrapped", "in place", "every block"])
def compiled(request, family):
    """Return a model before compiling, and as its user calls it after."""
    torch.compiler.reset()
    model = build_loud(family)
    if request.param == "wrapped":
        return model, torch.compile(model, backend="eager")
    if request.param == "in place":
        model.compile(backend="eager")
    else:
        for layer in layout_of(model).layers:
            model.get_submodule(layer.path).compile(backend="eager")
    return model, model


def test_a_compiled_model_says_what_was_edited_and_forgets_it_again(
    compiled, family, tokenizer, edit_of
):
    plain, model = compiled
    told, before = logits(model, tokenizer), state_digest(plain)  # compiled now, with no hook in it
    calls = [vars(module).get("_compiled_call_impl") for module in plain.modules()]
    editor = edit_of(model)
    delta = editor.edit(FACT)
    edited = logits(model, tokenizer)
    assert not torch.equal(edited, told)
    reference = build_loud(family)
    same = edit_of(reference).edit(FACT)
    assert (delta.id, delta.parts[0].weight) == (same.id, f"{DOWN[family]}.weight")
    torch.testing.assert_close(edited, logits(reference, tokenizer))
    assert [vars(module).get("_compiled_call_impl") for module in plain.modules()] == calls
    assert editor.evaluate(FACT).means()["reliability.exact"] in {0.0, 1.0}
    editor.undo()
    torch.testing.assert_close(logits(model, tokenizer), told)
    assert state_digest(plain) == before


def test_deltas_of_a_plain_model_load_on_a_compiled_one_and_the_other_way_round(
    compiled, family, tokenizer, edit_of, tmp_path
):
    _, model = compiled
    first = edit_of(build_loud(family))
    first.edit(FACT)
    first.save(tmp_path / "plain")
    second = edit_of(model)
    (delta,) = second.load(tmp_path / "plain")
    torch.testing.assert_close(logits(model, tokenizer), logits(first.model, tokenizer))
    second.save(tmp_path / "compiled")
    third = edit_of(build_loud(family))
    assert third.load(tmp_path / "compiled")[0].id == delta.id
    assert state_digest(third.model) == state_digest(first.model)


def test_restored_edits_are_judged_together_on_a_compiled_model_too(compiled, tokenizer, edit_of):
    _, model = compiled
    logits(model, tokenizer)  # compiled now
    editor = edit_of(model)
    delta = editor.edit(FACT)
    (read,) = encode(tokenizer, [FACT.prompt])
    target = encode_target(tokenizer, read, " English")
    (alone,) = score_answers(editor.model, [(read.ids, target)])
    editor.undo()
    (before,) = score_answers(editor.model, [(read.ids, target)])
    (together,) = score_together(model, [delta], [Asked(delta=0, prompt=read.ids, answer=target)])
    torch.testing.assert_close(together.log_probs, alone.log_probs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together.log_probs, before.log_probs, rtol=1e-3)


def test_a_compiled_model_has_the_owner_of_the_plain_one(edit_of):
    model = build_loud("llama")
    owner = edit_of(model)
    with pytest.raises(ModelError, match="another editor owns this model"):
        edit_of(torch.compile(model, backend="eager"))
    assert owner.model is model


def test_a_part_that_was_compiled_into_a_module_of_its_own_is_refused_with_what_to_do():
    model = build_loud("llama")
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.compile\(\), which works in place"):
        layout_of(model)


# Dtypes and devices.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "bloom", "opt"])
def test_half_precision_models_are_edited_on_a_cpu(name, dtype, tokenizer, tmp_path):
    model = build_loud(name).to(dtype)
    before, unsure = state_digest(model), nll(model, tokenizer, FACT)
    editor = Editor(model, tokenizer, "rome", SETTINGS, cache=TensorCache(tmp_path))
    (part,) = editor.edit(FACT).parts
    assert part.left.dtype == part.right.dtype == torch.float32
    assert model.get_parameter(part.weight).dtype == dtype
    assert nll(model, tokenizer, FACT) < unsure
    editor.undo()
    assert state_digest(model) == before


def test_with_accelerates_hooks_on_a_cpu_edits_are_those_without(family, tokenizer, edit_of):
    model = dispatch_model(build_loud(family), device_map={"": "cpu"}, force_hooks=True)
    assert any(isinstance(getattr(m, "_hf_hook", None), AlignDevicesHook) for m in model.modules())
    forwards = [vars(module).get("forward") for module in model.modules()]
    before = state_digest(model)
    editor = edit_of(model)
    delta = editor.edit(FACT)
    (part,), (plain,) = (one.parts for one in (delta, edit_of(build_loud(family)).edit(FACT)))
    for factor in ("left", "right"):
        torch.testing.assert_close(getattr(part, factor), getattr(plain, factor), rtol=0, atol=1e-3)
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    editor.undo()
    assert state_digest(model) == before


# Modules that a kernel replaces.


def fuse(model, path):
    """Let one module compute everything itself, as a fused kernel does, its children never called."""
    block = model.get_submodule(path)
    children = dict(block.named_children())

    def forward(hidden):
        gate = torch.nn.functional.linear(hidden, children["gate_proj"].weight)
        up = torch.nn.functional.linear(hidden, children["up_proj"].weight)
        inner = torch.nn.functional.silu(gate) * up
        return torch.nn.functional.linear(inner, children["down_proj"].weight)

    block.forward = forward


def test_a_projection_that_a_fused_kernel_skips_is_named_with_what_to_do(edit_of):
    model = build_loud("llama")
    fuse(model, "model.layers.1.mlp")
    assert layout_of(model).layers[0].down.path == "model.layers.0.mlp.down_proj"
    before = state_digest(model)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: did not run .*use_kernels=F"):
        edit_of(model).edit(FACT)
    assert state_digest(model) == before


def test_a_module_that_stops_running_after_the_trace_is_named_too(edit_of):
    model = build_loud("llama")
    editor = edit_of(model)
    assert editor.weights.layout.down_of(LAYER)
    fuse(model, "model.layers.1.mlp")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: did not run .*use_kernels=F"):
        editor.edit(FACT)


def test_an_output_that_was_to_be_replaced_and_never_came_is_an_error():
    model = build_loud("llama")
    fuse(model, "model.layers.1.mlp")
    ids = torch.tensor([[1, 2, 3]])
    with (
        pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: did not run"),
        replaced_output(model, "model.layers.1.mlp.down_proj", lambda hidden: hidden),
    ):
        model(input_ids=ids)
    assert not hooks_of(model)[0][2]


# Layouts named by hand.


def test_an_edit_goes_where_the_user_says_the_piece_is(tokenizer, tmp_path):
    model = build_loud("llama")
    named = {"down": "model.layers.{}.mlp.up_proj"}
    cache = TensorCache(tmp_path)
    editor = Editor(model, tokenizer, "rome", SETTINGS, cache=cache, layout=named)
    before, unsure = state_digest(model), nll(model, tokenizer, FACT)
    (part,) = editor.edit(FACT).parts
    assert part.weight == f"model.layers.{LAYER}.mlp.up_proj.weight"
    assert nll(model, tokenizer, FACT) < unsure
    editor.undo()
    assert state_digest(model) == before
    assert Weights(model, layout=named).layout.down_of(0).path == "model.layers.0.mlp.up_proj"


def test_half_precision_deltas_do_not_fit_another_base(tokenizer, edit_of, tmp_path):
    first = edit_of(build_loud("llama"))
    first.edit(FACT)
    first.save(tmp_path / "delta")
    other = build_loud("llama")
    with torch.no_grad():
        other.get_parameter(f"{DOWN['llama']}.weight").mul_(1.5)
    with warnings.catch_warnings(), pytest.raises(DeltaError, match="not made for this model"):
        edit_of(other.half()).load(tmp_path / "delta")


def test_on_the_command_line_a_piece_is_named_with_layout(tokenizer, tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "named.delta"
    build_loud("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "rome.json").write_text(json.dumps(SETTINGS))
    fact = ("--prompt", FACT.prompt, "--subject", FACT.subject, "--target", FACT.target_new)
    command = ["edit", str(folder), "--method", "rome", *fact, "--out", str(out)]
    command += ["--config", str(tmp_path / "rome.json"), "--layout"]
    assert _code([*command, "down=model.layers.{}.mlp.up_proj"]) == 0
    (delta,) = load_deltas(out)
    assert delta.parts[0].weight == f"model.layers.{LAYER}.mlp.up_proj.weight"
    for wrong, sentence in (
        ("up_proj", "--layout: 'up_proj' is not PIECE=PATH; down=PATH names one"),
        ("dwon=model.layers.{}.mlp.up_proj", "layout: there is no piece 'dwon'"),
        ("down=model.layers.{}.nothing", "the model has no module 'model.layers.0.nothing'"),
    ):
        capsys.readouterr()
        assert _code([*command, wrong]) == 2
        assert sentence in capsys.readouterr().err


def _code(command):
    """Return the exit code of a command."""
    try:
        main(command)
    except SystemExit as ended:
        return ended.code or 0
    return 0
