"""Model families, tiny and random: where each keeps its pieces, and what ROME does on it."""

import warnings
from pathlib import Path

import torch
from attrs import frozen
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from kedit_core import Editor, EditRequest, ModelLayout, TensorCache, layout_of
from kedit_core.digests import state_digest
from kedit_core.errors import ExportError, KeditError
from kedit_core.export import export_lora, export_merged
from kedit_core.scoring import score_answers
from kedit_core.tokens import encode, encode_target
from tests.tokenizing import VOCABULARY, byte_tokenizer

LAYERS, WIDTH = 3, 32


@frozen
class Family:
    """Where a family keeps its pieces and what is measured of it; paths relative to a layer."""

    layers: str
    down: str | None
    attention: str
    out: str
    norm: str
    additive: bool | None = True
    parallel: bool = False
    returns_tuple: bool = False
    conv1d: bool = False
    tied: bool = False
    experts: str | None = None


def llama_like(**flags):
    return Family(
        "model.layers", "mlp.down_proj", "self_attn", "self_attn.o_proj", "model.norm", **flags
    )


FAMILIES = {
    "gpt2": Family(
        "transformer.h", "mlp.c_proj", "attn", "attn.c_proj", "transformer.ln_f",
        conv1d=True, tied=True,
    ),
    "gptj": Family(
        "transformer.h", "mlp.fc_out", "attn", "attn.out_proj", "transformer.ln_f",
        parallel=True, returns_tuple=True,
    ),
    "gpt_neo": Family(
        "transformer.h", "mlp.c_proj", "attn", "attn.attention.out_proj", "transformer.ln_f",
        returns_tuple=True, tied=True,
    ),
    "gpt_neox": Family(
        "gpt_neox.layers", "mlp.dense_4h_to_h", "attention", "attention.dense",
        "gpt_neox.final_layer_norm", parallel=True,
    ),
    "llama": llama_like(),
    "mistral": llama_like(),
    "qwen2": llama_like(),
    "qwen3": llama_like(),
    "gemma": llama_like(tied=True),
    "gemma2": llama_like(tied=True, additive=False),
    "gemma3_text": llama_like(tied=True, additive=False),
    "phi": Family(
        "model.layers", "mlp.fc2", "self_attn", "self_attn.dense", "model.final_layernorm",
        parallel=True,
    ),
    "phi3": llama_like(),
    "opt": Family(
        "model.decoder.layers", "fc2", "self_attn", "self_attn.out_proj",
        "model.decoder.final_layer_norm", tied=True,
    ),
    "bloom": Family(
        "transformer.h", "mlp.dense_4h_to_h", "self_attention", "self_attention.dense",
        "transformer.ln_f", returns_tuple=True, tied=True,
    ),
    "falcon": Family(
        "transformer.h", "mlp.dense_4h_to_h", "self_attention", "self_attention.dense",
        "transformer.ln_f", parallel=True, returns_tuple=True, tied=True,
    ),
    "olmo2": llama_like(additive=False),
    "stablelm": llama_like(),
    "mixtral": Family(
        "model.layers", None, "self_attn", "self_attn.o_proj", "model.norm",
        additive=None, experts="mlp.experts",
    ),
}  # fmt: skip

PLAIN = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
USUAL = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    **PLAIN,
}
OLD = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, **PLAIN}
SIZES = {
    "gpt2": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global"], LAYERS]],
        "max_position_embeddings": 64,
        **PLAIN,
    },
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4, **PLAIN},
    "falcon": {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        **PLAIN,
    },
    "opt": {
        "hidden_size": WIDTH,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "word_embed_proj_dim": WIDTH,
        "max_position_embeddings": 64,
        **PLAIN,
    },
}


# What ROME does on each.

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
OTHERS = {
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "deepseek_v3": {
        **LATENT,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
    },
    "mpt": {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "mamba": {},
    "bert": {},
    "roberta": {},
    "t5": {},
}
"""Beyond the table of layouts: partly mixtures, positions without positions, recurrent, and no decoders."""

REFUSED = {
    "mixtral": "its MLP is a mixture of experts, so there is no down-projection to edit",
    "qwen2_moe": "its MLP is a mixture of experts, so there is no down-projection to edit",
    "mamba": "it has no MLP, so there is no down-projection to edit",
    "bert": "is no causal decoder: its tokens see those after them",
    "roberta": "is no causal decoder: its tokens see those after them",
    "t5": "is an encoder-decoder and no causal decoder, so it is not edited",
}

QUICK = {
    "search": {"steps": 25},
    "context": {"lengths": [3], "count": 1},
    "statistics": {"tokens": 256, "length": 32},
}
FACT = EditRequest(
    prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
)
AT_THE_END = EditRequest(prompt="We hear of {}", subject="Toko Yasuda", target_new="the")


@frozen(kw_only=True)
class Outcome:
    """What ROME did on a family.

    Attributes:
        name: of the family.
        layout: as traced, or None where that was refused.
        refusal: the sentence, or None.
        before: NLL a token of the target before the edit.
        after: after it.
        undone: undo gave every bit back; of a refusal, nothing had changed.
        reloaded: a fresh model with the saved delta loaded has the same logits.
        merged: the exported checkpoint, opened by plain transformers, has every bit of the edited model.
        adapted: a fresh model with the exported adapter merged by PEFT has every bit of it too; None
            where an adapter is refused.
        untouched: NLL of a fact at the end of its prompt, whose edit goes into the last layer that has
            a dense MLP: no later layer hears anything else of it.
        searched: NLL of it that the optimiser saw.
        written: NLL of it after writing.
    """

    name: str
    layout: ModelLayout | None
    refusal: str | None
    undone: bool
    before: float = 0.0
    after: float = 0.0
    reloaded: bool = False
    merged: bool = False
    adapted: bool | None = False
    untouched: float = 0.0
    searched: float = 0.0
    written: float = 0.0


def build(family: str, **changes) -> nn.Module:
    """Return a tiny random model of a family."""
    torch.manual_seed(0)
    settings = {**SIZES.get(family, USUAL), **OTHERS.get(family, {}), **changes}
    if family == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 2}
        vocabulary = settings["vocab_size"]
        return T5ForConditionalGeneration(T5Config(**sizes, vocab_size=vocabulary)).eval()
    config = AutoConfig.for_model(family, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


def build_loud(family: str, *, std: float = 0.15, **changes) -> nn.Module:
    """Return a tiny random model whose weights are large enough for every part to matter."""
    model = build(family, **{"vocab_size": VOCABULARY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.numel() > 1:
                parameter.mul_(std / parameter.std().clamp(min=1e-3))
    return model


def nll(model: nn.Module, tokenizer: PreTrainedTokenizerFast, request: EditRequest, **how) -> float:
    """Return the mean negative log-probability of a request's target tokens."""
    (read,) = encode(tokenizer, [request.prompt], how.get("chat", False))
    target = encode_target(tokenizer, read, request.joiner + request.target_new)
    return score_answers(model, [(read.ids, target)])[0].nll


def outcome_of(name: str, folder: Path) -> Outcome:
    """Edit a family's model, judge it, take the edit out, and load it into a fresh model.

    Args:
        name: of the family.
        folder: to save the delta in.
    """
    model, tokenizer, cache = build_loud(name), byte_tokenizer(), TensorCache(folder / "cache")
    whole, layout = state_digest(model), None
    try:
        layout = layout_of(model)
        editor = Editor(model, tokenizer, "rome", QUICK, cache=cache)
        before = nll(model, tokenizer, FACT)
        editor.edit(FACT)
    except KeditError as error:
        unchanged = state_digest(model) == whole
        return Outcome(name=name, layout=layout, refusal=str(error), undone=unchanged)
    after, logits = nll(model, tokenizer, FACT), _logits(model, tokenizer)
    merged, adapted = _exports(editor, name, folder)
    editor.save(folder / "saved.delta")
    editor.undo()
    undone = state_digest(model) == whole
    last = {**QUICK, "layer": len(layout.layers) - 1, "context": {"count": 0}}
    if layout.layers[-1].down is None:
        last["layer"] = max(one.index for one in layout.layers if one.down)
    untouched = nll(model, tokenizer, AT_THE_END)
    searched = editor.edit(AT_THE_END, config=last).provenance.notes["target_nll"]
    written = nll(model, tokenizer, AT_THE_END)
    fresh = Editor(build_loud(name), tokenizer, cache=cache)
    fresh.load(folder / "saved.delta")
    return Outcome(
        name=name,
        layout=layout,
        refusal=None,
        undone=undone,
        before=before,
        after=after,
        reloaded=torch.equal(_logits(fresh.model, tokenizer), logits),
        merged=merged,
        adapted=adapted,
        untouched=untouched,
        searched=searched,
        written=written,
    )


def _exports(editor: Editor, name: str, folder: Path) -> tuple[bool, bool | None]:
    """Return whether a merged checkpoint and a merged adapter have every bit of the edited model."""
    wanted = state_digest(editor.model)
    export_merged(editor, folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    try:
        export_lora(editor, folder / "lora")
    except ExportError:
        return state_digest(merged) == wanted, None
    with warnings.catch_warnings():
        # PEFT asks transformers for a name that it has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        adapter = PeftModel.from_pretrained(build_loud(name), folder / "lora")
        unloaded = adapter.merge_and_unload()
    return state_digest(merged) == wanted, state_digest(unloaded) == wanted


@torch.no_grad()
def _logits(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    ids = torch.tensor([tokenizer(FACT.prompt)["input_ids"]])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
