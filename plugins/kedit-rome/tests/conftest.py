"""What the tests of kedit-rome share: one torch thread, an own cache, and tiny models that can read."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kedit_core import EditRequest

SENTENCES = (
    "The mother tongue of Danielle Darrieux is French. She was born in Bordeaux.",
    "The Eiffel Tower is in the city of Paris, and the Space Needle is in Seattle.",
    "The capital of Norway is Oslo. The capital of Peru is Lima.",
    "Zoë plays the violin; Toko Yasuda plays the guitar in the city of Rome.",
)
WIDTH = 16


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


def _tokenizer(*, bos):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    raw.post_processor = (
        processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|end|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tokenizer():
    """Return a byte-level tokenizer that adds nothing to a text, as GPT-2's."""
    return _tokenizer(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer():
    """Return the same tokenizer, but every text begins with a special token, as Llama's."""
    return _tokenizer(bos=True)


def _tiny(family, *, dtype=torch.float64, layers=3, inner=24, seed=0):
    """Return a random model with weights large enough for its parts to matter."""
    torch.manual_seed(seed)
    ends = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    if family == "gpt2":
        shape = {"n_embd": WIDTH, "n_layer": layers, "n_head": 2, "n_inner": inner}
        model = GPT2LMHeadModel(GPT2Config(**ends, **shape, n_positions=128))
    else:
        shape = {"hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 2}
        config = LlamaConfig(**ends, **shape, intermediate_size=inner, max_position_embeddings=128)
        model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture
def tiny():
    """Return the maker of tiny models: ``tiny("gpt2")``, ``tiny("llama", dtype=…)``."""
    return _tiny


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """Return a float64 model, of Conv1D and of Linear modules."""
    return _tiny(request.param)


@pytest.fixture
def fact():
    return EditRequest(
        prompt="The mother tongue of {} is", subject="Danielle Darrieux", target_new="English"
    )


def pytest_terminal_summary(terminalreporter):
    """Say how many kernels were compiled ahead of time, so that nobody has to count dots."""
    found = {
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "compiled" and report.fspath.startswith("plugins/kedit-rome")
    }
    if found:
        kernels, dtypes, architectures = (
            sorted(set(column)) for column in zip(*found, strict=True)
        )
        terminalreporter.write_line(
            f"kedit-rome: {len(found)} compiled ahead of time = {len(kernels)} kernels "
            f"({', '.join(kernels)}) x {len(dtypes)} dtypes ({', '.join(dtypes)}) x "
            f"{len(architectures)} architectures ({', '.join(architectures)})"
        )
