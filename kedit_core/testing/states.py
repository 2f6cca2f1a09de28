"""Everything around an edit that it must leave as it was: the model, the tokenizer, the process."""

import json
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import asdict, has
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch
from transformers import PreTrainedModel

from kedit_core.digests import digest, state_digest
from kedit_core.editor import Editor
from kedit_core.untouched import collects_for_transformers

State = tuple[tuple[str, Any], ...]
"""What was found, by name, to be compared with ``differing``."""

_OF_TORCH = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_compiled_call_impl"}
_NOTED = "_output_capturing_hooks_installed"
"""What transformers sets on a model once it has hung up hooks that collect hidden states."""

_CALLED = ("forward", "__call__", "generate")
_SIMPLE = (bool, int, float, str, type(None), torch.dtype)
_TABLES = {
    name: table
    for name, table in vars(modules_of_torch).items()
    if name.startswith("_global_") and isinstance(table, dict)
}


def state_of(editor: Editor) -> State:
    """Return everything that an edit must leave as it was.

    Args:
        editor: of the model and the tokenizer that are looked at.
    """
    model, tokenizer = editor.model, editor.tokenizer
    hooks = [
        (path, name, hook)
        for path, module in model.named_modules()
        for name, found in vars(module).items()
        if name.endswith(("hooks", "hooks_with_kwargs", "hooks_always_called"))
        for hook in (found.values() if isinstance(found, dict) else ())
        if not collects_for_transformers(hook)
    ]
    return (
        ("weights", state_digest(model)),
        ("buffers", [(path, digest(one)) for path, one in model.named_buffers()]),
        ("modules", [(path, type(one).__name__) for path, one in model.named_modules()]),
        ("hooks", hooks),
        ("forward", [path for path, one in model.named_modules() if "forward" in vars(one)]),
        ("classes", _classes(model)),
        ("attributes", [(path, _attributes(one)) for path, one in model.named_modules()]),
        ("mode", [path for path, module in model.named_modules() if module.training]),
        ("requires_grad", [path for path, one in model.named_parameters() if one.requires_grad]),
        ("gradients", [path for path, one in model.named_parameters() if one.grad is not None]),
        ("config", _settings(model.config)),
        ("generation_config", _settings(model.generation_config)),
        ("tokenizer", _tokenizer(tokenizer)),
        *_process(),
    )


def names_of(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return the paths of a model's parameters and the keys of its state dict."""
    return tuple(path for path, _ in model.named_parameters()), tuple(model.state_dict())


def differing(before: State, after: State) -> str:
    """Return which pieces of two states differ, by name."""
    return ", ".join(
        name for (name, one), (_, other) in zip(before, after, strict=True) if one != other
    )


def content_of(*values: Any) -> list[Any]:
    """Return copies of what a hook is given, tensors as their digests, to be compared later.

    Args:
        values: requests, deltas, settings: attrs values, or sequences of them.
    """
    return [_content(value) for value in values]


@contextmanager
def same_process() -> Iterator[None]:
    """Put the process's own state back at the end: what one check leaves behind fails no other."""
    chance, own_chance, numpys_chance = torch.get_rng_state(), random.getstate(), _numpys_chance()
    grad, dtype, threads = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    tables = {name: dict(table) for name, table in _TABLES.items()}
    try:
        yield
    finally:
        torch.set_rng_state(chance)
        random.setstate(own_chance)
        if numpys_chance is not None:
            sys.modules["numpy"].random.set_state(numpys_chance)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        for name, table in _TABLES.items():
            table.clear()
            table.update(tables[name])


def _process() -> Iterator[tuple[str, Any]]:
    """Yield what a process has once, and all that runs in it shares."""
    yield "random state of torch", digest(torch.get_rng_state())
    yield "random state of Python", random.getstate()
    yield "random state of numpy", str(_numpys_chance())
    yield "grad mode", torch.is_grad_enabled()
    yield "default dtype", torch.get_default_dtype()
    yield "deterministic mode", torch.are_deterministic_algorithms_enabled()
    yield "number of threads", torch.get_num_threads()
    yield "live threads", sorted(one.name for one in threading.enumerate())
    yield "global hooks", {name: list(table) for name, table in _TABLES.items()}


def _numpys_chance() -> Any:
    """Return numpy's global random state, if anybody imported numpy: core itself does not need it."""
    numpy: Any = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state(legacy=False)


def _classes(model: nn.Module) -> list[tuple[str, list[int]]]:
    """Return which functions the classes of a model's modules call."""
    classes = {one for module in model.modules() for one in type(module).__mro__[:-1]}
    return sorted(
        (one.__qualname__, [id(vars(one).get(name)) for name in _CALLED]) for one in classes
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module: simple values, and of others which object it is."""
    return {
        name: one if isinstance(one, _SIMPLE) else id(one)
        for name, one in vars(module).items()
        if name not in _OF_TORCH and name not in (_NOTED, "forward")
    }


def _settings(config: Any) -> str:
    """Return what a config says, the attention that it asks for included."""
    said = {} if config is None else {**vars(config), **config.to_dict()}
    return json.dumps(said, sort_keys=True, default=str)


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return what decides how a tokenizer reads and writes."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set anew by every call of the tokenizer, from what the call says.
    rules = {name: one for name, one in rules.items() if name not in ("padding", "truncation")}
    simple = {name: one for name, one in vars(tokenizer).items() if isinstance(one, _SIMPLE)}
    return {"rules": rules, "special": dict(tokenizer.special_tokens_map), **simple}


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return digest(value)
    if has(type(value)):
        return type(value).__name__, _content(asdict(value, recurse=False))
    if isinstance(value, Mapping):
        return {name: _content(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_content(one) for one in value]
    return value
