"""Tiny random models and a byte-level tokenizer: for tests of mechanics, where nothing need be known."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SENTENCES = (
    "The mother tongue of Danielle Darrieux is French. She was born in Bordeaux.",
    "The Eiffel Tower is in the city of Paris, and the Space Needle is in Seattle.",
    "The capital of Norway is Oslo. The capital of Peru is Lima.",
    "Zoë plays the violin; Toko Yasuda plays the guitar in the city of Rome.",
)
"""What the tokenizer learns its words from, unless told otherwise."""

WIDTH = 16
"""Hidden size of the tiny models."""

END_OF_TEXT = "<|end|>"


def byte_level_tokenizer(
    *, bos: bool, sentences: tuple[str, ...] = SENTENCES, vocabulary: int = 300
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that reads any text.

    Args:
        bos: whether every text begins with a special token, as Llama's, or with nothing, as GPT-2's.
        sentences: what its words are learned from.
        vocabulary: number of tokens, the 256 bytes and the special one among them.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(sentences, trainer)
    raw.post_processor = (
        processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    family: str,
    *,
    dtype: torch.dtype = torch.float64,
    layers: int = 3,
    inner: int = 24,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a random model with weights large enough for its parts to matter.

    Args:
        family: ``gpt2`` stores its matrices as Conv1D, ``llama`` as Linear modules.
        dtype: of its weights.
        layers: number of blocks.
        inner: width of its MLPs.
        seed: of its weights.
    """
    shape: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    shape["initializer_range"] = 0.3
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        if family == "gpt2":
            shape |= {"n_embd": WIDTH, "n_layer": layers, "n_head": 2, "n_inner": inner}
            model = GPT2LMHeadModel(GPT2Config(**shape, n_positions=128))
        else:
            shape |= {"hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 2}
            shape |= {"intermediate_size": inner, "max_position_embeddings": 128}
            model = LlamaForCausalLM(LlamaConfig(**shape))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.requires_grad_(False)
    return torch.nn.Module.eval(torch.nn.Module.to(model, dtype))
