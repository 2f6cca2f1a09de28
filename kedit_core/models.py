"""Opening models: folders and hub ids with transformers."""

from pathlib import Path

import torch
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
    if ":" in source:
        raise ModelError(source, "no installed plugin opens it, and it is no folder or hub id")
    placement = {} if device is None else {"device_map": device}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", **placement)
    except (OSError, ValueError, ImportError, KeyError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(source, f"cannot be opened: {first_line}") from error
    return model, tokenizer
