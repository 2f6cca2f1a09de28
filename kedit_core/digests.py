"""Names for tensors and models, made from their content."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 1024
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bits, as hex."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def state_digest(model: nn.Module) -> str:
    """Return the sha256 of a model's whole state dict, names and bits, as hex."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {digest(tensor)}\n".encode())
    return found.hexdigest()


def fingerprint(model: nn.Module, originals: Mapping[str, Tensor]) -> str:
    """Return a quick name of an unedited model: config and a sample of every parameter.

    Sampled values make it milliseconds instead of seconds; a dense change such as an edit shows, a
    single changed element may not. The bits are hashed as stored: the bf16 and fp32 forms of one
    checkpoint have different keys, so they have different names.

    Args:
        model: the model, maybe edited.
        originals: parameters as they were before the first edit, by path.
    """
    found = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        settings = {
            key: value for key, value in config.to_diff_dict().items() if key not in _VOLATILE
        }
        found.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for line in _samples(model, originals, None):
        found.update(line.encode())
    return found.hexdigest()[:32]


def sampled_digest(model: nn.Module, originals: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Return the sha256 of a sample of every parameter of an unedited model, cast to ``dtype``.

    Args:
        model: the model, maybe edited.
        originals: parameters as they were before the first edit, by path.
        dtype: so that the fp32 and bf16 forms of one checkpoint can be told to be the same.
    """
    return hashlib.sha256("".join(_samples(model, originals, dtype)).encode()).hexdigest()


def _samples(
    model: nn.Module, originals: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[str]:
    for name, parameter in sorted(model.named_parameters()):
        tensor = originals.get(name, parameter).detach()
        stride = max(1, tensor.numel() // _SAMPLES)
        sample = tensor.reshape(-1)[::stride][:_SAMPLES]
        yield f"{name} {tuple(tensor.shape)} {digest(sample.to(dtype or sample.dtype))}\n"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a name of a tokenizer, made from its vocabulary and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = (
        backend.to_str()
        if backend is not None
        else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    return hashlib.sha256(rules.encode()).hexdigest()[:32]
