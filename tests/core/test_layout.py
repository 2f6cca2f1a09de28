"""The pieces of a model are found by running it, whatever its family calls them."""

import inspect
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from kedit_core import ModelLayout, layout_of
from kedit_core.errors import ModelError
from tests.families import FAMILIES, LAYERS, WIDTH, build


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pieces_of_a_family_are_found(name):
    family, model = FAMILIES[name], build(name)
    layout = layout_of(model)
    assert [layer.path for layer in layout.layers] == [
        f"{family.layers}.{n}" for n in range(LAYERS)
    ]
    for n, layer in enumerate(layout.layers):
        below = f"{family.layers}.{n}"
        assert layer.index == n
        assert layer.attention == f"{below}.{family.attention}"
        assert layer.attention_out.path == f"{below}.{family.out}"
        assert layer.experts == (family.experts and f"{below}.{family.experts}")
        assert (layer.down and layer.down.path) == (family.down and f"{below}.{family.down}")
        if layer.down:
            assert layer.mlp == f"{below}.{family.down}".rpartition(".")[0]
    assert layout.final_norm == family.norm
    assert model.get_submodule(layout.head) is model.get_output_embeddings()
    assert model.get_submodule(layout.embedding) is model.get_input_embeddings()
    measured = (layout.parallel, layout.layer_returns_tuple, layout.conv1d, layout.tied)
    assert measured == (family.parallel, family.returns_tuple, family.conv1d, family.tied)
    assert layout.additive is family.additive


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.down])
def test_a_projection_says_how_wide_it_is_and_where_its_weight_is(name):
    model = build(name)
    for layer in layout_of(model).layers:
        for found in (layer.down, layer.attention_out):
            weight = model.get_parameter(found.weight)
            stored = (found.in_features, found.out_features)
            assert tuple(weight.shape) == (stored if found.conv1d else stored[::-1])
            assert found.out_features == WIDTH
            assert found.conv1d is FAMILIES[name].conv1d


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.down])
def test_an_mlp_whose_inner_state_is_a_product_is_gated(name):
    plain = {"gpt2", "gptj", "gpt_neo", "gpt_neox", "phi", "opt", "bloom", "falcon"}
    assert {layer.gated for layer in layout_of(build(name)).layers} == {name not in plain}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "gemma", "gemma2", "phi", "olmo2", "bloom"])
def test_a_model_in_half_precision_has_the_layout_it_has_in_float32(name, dtype):
    assert layout_of(build(name).to(dtype)) == layout_of(build(name))


@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_a_stream_far_larger_than_what_a_block_adds_hides_nothing(name):
    model = build(name).to(torch.bfloat16)
    with torch.no_grad():  # as the massive activations of real models
        model.get_input_embeddings().weight[:, 3] = 100.0
    assert layout_of(model).additive is FAMILIES[name].additive


def test_tied_is_what_the_config_says_where_a_family_lets_one_choose():
    assert layout_of(build("llama", tie_word_embeddings=True)).tied
    assert not layout_of(build("gpt2", tie_word_embeddings=False)).tied


def test_a_square_mlp_is_told_apart_from_its_up_projection():
    layout = layout_of(build("llama", intermediate_size=WIDTH))
    assert [layer.down.path for layer in layout.layers] == [
        f"model.layers.{n}.mlp.down_proj" for n in range(LAYERS)
    ]
    assert layout_of(build("gpt2", n_inner=WIDTH)).layers[0].down.path.endswith("c_proj")


def test_layers_that_differ_are_looked_at_one_by_one():
    model = build(
        "deepseek_v3",
        first_k_dense_replace=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        head_dim=4,
    )
    layout = layout_of(model)
    assert layout.layers[0].down.path == "model.layers.0.mlp.down_proj"
    assert layout.layers[0].experts is None
    for layer in layout.layers[1:]:
        assert (layer.down, layer.experts) == (None, f"{layer.path}.mlp.experts")
    with pytest.raises(ModelError, match="mixture of experts"):
        layout.down_of(1)
    assert layout.down_of(0).weight == "model.layers.0.mlp.down_proj.weight"


def test_there_is_no_layer_beyond_the_last_and_none_counted_from_the_end():
    layout = layout_of(build("gpt2"))
    for index in (LAYERS, -1):
        with pytest.raises(ModelError, match="layers 0 to 2"):
            layout.layer(index)


def rename_everything(model: nn.Module) -> dict[str, str]:
    """Give every module of a model another name, the code's own names staying as properties.

    Returns what each name became.
    """
    names: dict[str, str] = {}
    for module in list(model.modules()):
        children = list(module.named_children())
        if isinstance(module, nn.ModuleList) or not children:
            continue
        seen = {}
        for name, child in children:
            new = names.setdefault(name, f"piece{len(names)}")
            del module._modules[name]
            module._modules[new] = child
            seen[name] = property(lambda self, new=new: self._modules[new])
        module.__class__ = type(type(module).__name__, (type(module),), seen)
    return names


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_model_with_every_module_renamed_is_still_found(name):
    plain, renamed = layout_of(build(name)), build(name)
    names = rename_everything(renamed)
    found = layout_of(renamed)

    def as_renamed(path):
        return ".".join(names.get(part, part) for part in path.split("."))

    for layer, other in zip(found.layers, plain.layers, strict=True):
        assert layer.path == as_renamed(other.path) != other.path
        assert layer.down.path == as_renamed(other.down.path)
        assert layer.attention_out.path == as_renamed(other.attention_out.path)
    assert found.final_norm == as_renamed(plain.final_norm)
    assert found.head == as_renamed(plain.head)
    assert (found.additive, found.parallel) == (plain.additive, plain.parallel)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_the_trace_leaves_the_model_as_it_was(name, state_of):
    model = build(name)
    model.train()
    model.get_input_embeddings().eval()
    model.lm_head.requires_grad_(False)
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    state = state_of(model)
    layout_of(model)
    assert calls
    assert state_of(model) == state
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    state = state_of(model)
    with pytest.raises(ZeroDivisionError):
        layout_of(model)
    assert state_of(model) == state


def test_the_trace_uses_neither_randomness_nor_gradients():
    model = build("gpt2", resid_pdrop=0.5).train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = layout_of(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert layout_of(model) == first
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_piece_can_be_named_by_hand():
    model = build("llama")
    plain = layout_of(model)
    layout = layout_of(model, {"down": "model.layers.{}.mlp.up_proj", "attention": "model.norm"})
    assert layout.layers[2].down.path == "model.layers.2.mlp.up_proj"
    assert (layout.layers[2].down.in_features, layout.layers[2].down.out_features) == (WIDTH, 48)
    assert layout.layers[2].attention == "model.norm"
    assert layout.layers[2].attention_out == plain.layers[2].attention_out
    out = layout_of(model, {"attention_out": "model.layers.{}.self_attn.q_proj"})
    assert out.layers[0].attention_out.path == "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"dwon": "model.layers.{}.mlp.up_proj"}, "no piece 'dwon'"),
        ({"down": "model.layers.{}.mlp.nothing"}, "no module 'model.layers.0.mlp.nothing'"),
        ({"down": "model.layers.{}.mlp"}, "no linear map"),
        ({"down": "model.layers.{}.input_layernorm"}, "no linear map"),
    ],
)
def test_a_piece_named_wrongly_is_refused(overrides, complaint):
    with pytest.raises(ModelError, match=complaint):
        layout_of(build("llama"), overrides)


def test_what_is_no_decoder_is_refused_in_one_sentence():
    with pytest.raises(ModelError, match="no config"):
        layout_of(nn.Linear(2, 2))
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 16}
    with pytest.raises(ModelError, match="an encoder-decoder and no causal decoder"):
        layout_of(T5ForConditionalGeneration(T5Config(num_layers=2, **small)).eval())
    stranger = nn.Linear(2, 2)
    stranger.config = GPT2Config(n_layer=5)
    with pytest.raises(ModelError, match="5 decoder layers"):
        layout_of(stranger)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_whose_tokens_see_later_ones_is_refused_and_as_a_decoder_taken(family):
    with pytest.raises(ModelError, match="no causal decoder: its tokens see those after them"):
        layout_of(build(family))
    decoder = build(family, is_decoder=True)
    layout = layout_of(decoder)
    assert layout.additive is False
    assert layout.down_of(0).path == f"{family}.encoder.layer.0.output.dense"


@pytest.mark.parametrize("headed", [AutoModel, AutoModelForSequenceClassification])
def test_a_model_without_a_language_model_head_is_refused_with_what_to_do(headed):
    model = headed.from_config(build("llama").config).eval()
    with pytest.raises(ModelError, match="no language-model head; open it with AutoModelForCausal"):
        layout_of(model)


class Routed(nn.Module):
    """A mixture of experts as models wrote it before they stacked weights: a list of MLPs."""

    def __init__(self):
        super().__init__()
        one = [nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH)]
        self.experts = nn.ModuleList(nn.Sequential(*deepcopy(one)) for _ in range(3))

    def forward(self, hidden):
        return self.experts[1](hidden)


def test_experts_in_a_list_are_no_dense_mlp():
    model = build("llama")
    model.model.layers[1].mlp = Routed()
    layout = layout_of(model)
    assert layout.layers[1].experts == "model.layers.1.mlp.experts"
    assert layout.layers[1].down is None
    with pytest.raises(ModelError, match="mixture of experts"):
        layout.down_of(1)
    assert layout.down_of(0).path == "model.layers.0.mlp.down_proj"
    assert layout.additive is True


def test_without_a_dense_mlp_nothing_is_said_of_additivity():
    assert layout_of(build("mamba")).additive is None
    assert layout_of(build("mixtral")).additive is None
    with pytest.raises(ModelError, match="it has no MLP"):
        layout_of(build("mamba")).down_of(0)


def test_a_layout_is_a_value_and_shows_itself_briefly():
    layout = layout_of(build("gpt2"))
    assert isinstance(layout, ModelLayout)
    assert "<3 layers>" in repr(layout)
    assert len(repr(layout)) < 300
    assert inspect.getdoc(type(layout))
