"""The three models: their shapes and tokenizers; how they are made, saved and opened."""

from collections.abc import Mapping
from copy import deepcopy
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path

import torch
from attrs import frozen
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from kedit_atlas.sentences import documents
from kedit_atlas.world import EDITABLE, KEPT, TRAINING, Fact
from kedit_core.models import open_with_transformers

END_OF_TEXT = "<|endoftext|>"
CONTEXT, WIDTH, HEADS, KEY_VALUE_HEADS, MLP_WIDTH, VOCABULARY = 256, 256, 8, 4, 1024, 4096


@frozen(kw_only=True)
class Shape:
    """What tells the models apart."""

    family: str  # "gpt2" | "llama"
    blocks: int
    sets: tuple[str, ...]  # whose text it learns
    bos: bool  # whether its tokenizer puts <|endoftext|> before every text
    exposure: float = 1.0  # of the training tokens that a big model gets for each fact


SHAPES: Mapping[str, Shape] = {
    "gpt2": Shape(family="gpt2", blocks=6, sets=(EDITABLE, TRAINING, KEPT), bos=False),
    "llama": Shape(family="llama", blocks=6, sets=(EDITABLE, TRAINING, KEPT), bos=True),
    "companion": Shape(family="gpt2", blocks=2, sets=(TRAINING, KEPT), bos=False, exposure=0.5),
}


def new_model(shape: Shape) -> PreTrainedModel:
    """An untrained model of this shape, in float32, without dropout; torch's own seed decides."""
    if shape.family == "llama":
        llama = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=MLP_WIDTH,
            num_hidden_layers=shape.blocks,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_VALUE_HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
        return LlamaForCausalLM(llama)
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_inner=MLP_WIDTH,
        n_layer=shape.blocks,
        n_head=HEADS,
        n_positions=CONTEXT,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(gpt2)


def new_tokenizer(facts: tuple[Fact, ...], sentences: int = 60_000) -> Tokenizer:
    """Byte-level BPE of ``VOCABULARY`` tokens, from training text; adds no special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (sentence.text for sentence in islice(documents(facts, "vocabulary"), sentences))
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def dressed(tokenizer: Tokenizer, *, bos: bool) -> PreTrainedTokenizerFast:
    """The tokenizer for Hugging Face; with ``bos`` it puts ``<|endoftext|>`` before every text."""
    own = Tokenizer.from_str(tokenizer.to_str())
    if bos:
        begin = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A",
            pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B:1",
            special_tokens=[(END_OF_TEXT, 0)],
        )
        own.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=own,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model in fp16 and its tokenizer, in Hugging Face format."""
    half = torch.nn.Module.half(deepcopy(model))
    if half.generation_config is not None:
        half.generation_config.pad_token_id = 0
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def open_folder(
    folder: Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``save`` wrote, by default in float32 on the CPU, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or torch.float32, local_files_only=True
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return torch.nn.Module.to(model, device or "cpu"), tokenizer


def open_shipped(
    name: str, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of this name that the package carries, and its tokenizer."""
    with as_file(files("kedit_atlas").joinpath("models", name)) as folder:
        return open_with_transformers(str(folder), dtype or torch.float32, device)
