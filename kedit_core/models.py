"""Opening models: folders and hub ids with transformers."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from kedit_core.errors import ModelError

_PATIENCE = 10.0  # seconds for the hub's first answer


def open_with_transformers(
    source: str, dtype: torch.dtype | None, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the causal language model and tokenizer of a local folder or a hub id.

    Args:
        source: folder or hub id.
        dtype: to load in; None takes the checkpoint's own.
        device: to load on; None is the default device.

    Raises:
        ModelError: nothing usable lies there, or the device cannot be used.
    """
    where = _device(device)
    opener: Any = AutoModelForCausalLM  # its type does not say that it can return a pair
    # No code of strangers: transformers would ask on a terminal, and wait.
    options = {"local_files_only": _is_local(source), "trust_remote_code": False}
    try:
        with _quiet():
            _check_kind(source, options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            # Other shapes are complained of below, by name and not by a table on stderr.
            model, loaded = opener.from_pretrained(
                source,
                dtype=dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except ModelError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(source, f"cannot be opened: {_first_line(error)}") from error
    _check_whole(source, model, loaded)
    # Where its files are missing, transformers makes an empty one of the model's type.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(source, "holds no tokenizer")
    # Not device_map: that needs accelerate even for one device.
    return model if where is None else nn.Module.to(model, where), tokenizer


def _device(name: str | None) -> torch.device | None:
    """Return a device, tried before a model is read for it."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # What torch raises for a device that it was not built for differs from one to the next.
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise ModelError(f"device {name}", f"cannot be used: {_first_line(error)}") from error
    if device.type == "meta":
        raise ModelError("device meta", "cannot be used: it holds no values")
    return device


def _is_local(source: str) -> bool:
    """Tell whether a source is to be read without the hub; refuse at once what is nowhere."""
    path = Path(source)
    if not source.strip():
        raise ModelError("model", "no folder and no hub id is named")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(
                source, "the folder holds no config.json, so it is no transformers model"
            )
        return True
    if path.is_file():
        raise ModelError(source, "is a file; name the folder of a transformers model")
    if ":" in source:
        raise ModelError(source, "no installed plugin opens it, and it is no folder or hub id")
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ModelError(source, "there is no such folder")
    try:
        # One short question: transformers' own would be repeated for minutes where there is no network.
        get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=_PATIENCE)
    except HFValidationError:
        raise ModelError(source, "there is no such folder, and it is no hub id") from None
    except RepositoryNotFoundError:
        raise ModelError(
            source, "there is no such folder, and the hub has no such model that you may read"
        ) from None
    except EntryNotFoundError:
        raise ModelError(source, "holds no config.json, so it is no transformers model") from None
    # What a network can raise is known to nobody; then only what is on this machine counts.
    except Exception as error:  # noqa: BLE001
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            raise ModelError(
                source,
                "there is no such folder, and the hub, which may know it, cannot be reached "
                f"({_first_line(error) or type(error).__name__})",
            ) from None
        return True
    return False


def _check_kind(source: str, options: dict[str, bool]) -> None:
    """See that transformers itself has a causal language model for this folder or hub id."""
    local = options["local_files_only"]
    settings, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local)
    kind = settings.get("model_type")
    own = settings.get("auto_map") or {}
    if kind not in CONFIG_MAPPING and own:
        raise ModelError(
            source,
            "needs Python code of its own, which kedit never runs; open it yourself and give the "
            "model to an Editor",
        )
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            source,
            f"its config.json says model_type {kind!r}, which the installed transformers does not know",
        )
    config = AutoConfig.from_pretrained(source, **options)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            source,
            f"is a {kind!r} model, no causal language model; kedit edits decoders such as gpt2 or llama",
        )


def _check_whole(source: str, model: nn.Module, loaded: Mapping[str, Any]) -> None:
    """See that every weight came from the checkpoint, under one of its names if it is tied."""
    for name, there, wanted in sorted(loaded["mismatched_keys"]):
        raise ModelError(
            source,
            f"its checkpoint does not fit its config.json: {name} has shape {tuple(there)} and not "
            f"{tuple(wanted)}",
        )
    missing = loaded["missing_keys"]
    weights = list(model.named_parameters(remove_duplicate=False))
    read = {id(one) for name, one in weights if name not in missing}
    absent = sorted(name for name, one in weights if name in missing and id(one) not in read)
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        raise ModelError(
            source,
            f"its checkpoint lacks {len(absent)} of the model's weights ({shown}); transformers "
            "would fill them with random values",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' reports to errors, and its bars to terminals, while a model is opened."""
    control: Any = logging
    shown, level = control.is_progress_bar_enabled(), control.get_verbosity()
    try:
        control.set_verbosity_error()
        if not sys.stderr.isatty():
            control.disable_progress_bar()
        yield
    finally:
        control.set_verbosity(level)
        if shown:
            control.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return shorten(str(error).strip().partition("\n")[0], width=200, placeholder=" …")
