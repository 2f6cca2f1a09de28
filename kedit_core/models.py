"""Opening models: folders and hub ids with transformers."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kedit_core.errors import ModelError


def open_with_transformers(
    source: str, dtype: torch.dtype | None, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the causal language model and tokenizer of a local folder or a hub id.

    Args:
        source: folder or hub id.
        dtype: to load in; None takes the checkpoint's own.
        device: to load on; None is the default device.

    Raises:
        ModelError: nothing usable lies there.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise ModelError(source, "the folder holds no config.json, so it is no transformers model")
    if ":" in source and not Path(source).is_dir():
        raise ModelError(source, "no installed plugin opens it, and it is no folder or hub id")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto")
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(source, f"cannot be opened: {_first_line(error)}") from error
    # Where its files are missing, transformers makes an empty one of the model's type.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(source, "holds no tokenizer")
    try:
        # Not device_map: that needs accelerate even for one device.
        if device is not None:
            nn.Module.to(model, torch.device(device))
    # What torch raises for a device that it was not built for differs from one to the next.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ModelError(f"device {device}", f"cannot be used: {_first_line(error)}") from error
    return model, tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
