"""A model as methods find it, and as they must leave it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from kedit_core.interrupts import uninterrupted

Attachment = tuple[nn.Module, str, Any]
"""What hangs on a module: the module, the name of its table of hooks, and the hook's id; or the module,
``forward`` and the function in the place of its own."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_FORWARD = "forward"
_COMPILED = "_compiled_call_impl"
_SETTINGS = ("config", "generation_config")


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Lend the model out in ``eval`` mode and without ``requires_grad``, and put it back as it was.

    What ``compile()`` put into its modules is out too: hooks may not fire in a compiled graph. Mode,
    ``requires_grad``, gradients and settings of every module are restored, whatever happens inside.
    """
    compiled = [
        (module, graph) for module in model.modules() if (graph := vars(module).get(_COMPILED))
    ]
    training = [(module, module.training) for module in model.modules()]
    gradients = [(one, one.requires_grad, one.grad) for one in model.parameters()]
    graded = torch.is_grad_enabled()
    with uninterrupted() as gate, same_settings(model):
        try:
            for module, _ in compiled:
                setattr(module, _COMPILED, None)
            model.eval()
            model.requires_grad_(False)
            for parameter, _, _ in gradients:
                parameter.grad = None  # or a backward pass inside would add to it in place
            with gate.open():
                yield
        except BaseException:
            torch.set_grad_enabled(graded)  # a Ctrl-C may strike inside no_grad() itself
            raise
        finally:
            for module, mode in training:
                module.training = mode
            for parameter, wanted, gradient in gradients:
                parameter.requires_grad_(wanted)
                parameter.grad = gradient
            for module, graph in compiled:
                setattr(module, _COMPILED, graph)


@contextmanager
def same_settings(model: nn.Module) -> Iterator[None]:
    """Leave ``config`` and ``generation_config`` as they are, whatever is written into them inside."""
    found = {
        id(one): one
        for module in model.modules()
        for name in _SETTINGS
        if hasattr(one := vars(module).get(name), "__dict__")
    }
    before = [(vars(one), dict(vars(one)), _containers(one)) for one in found.values()]
    try:
        yield
    finally:
        for settings, values, containers in before:
            changed = {name for name, one in containers.items() if values[name] != one}
            settings.clear()
            settings.update(values | {name: containers[name] for name in changed})


def _containers(settings: Any) -> dict[str, Any]:
    """Return copies of the lists and dicts among settings, which can change without being replaced."""
    return {
        name: deepcopy(one) for name, one in vars(settings).items() if isinstance(one, dict | list)
    }


def attachments(model: nn.Module) -> dict[Attachment, Any]:
    """Return everything that hangs on the modules of a model, in order: hooks and replaced forwards.

    Not the hooks that transformers uses to collect hidden states: it hangs them up when they are
    first asked for, remembers that it did, and never again looks whether they are there.
    """
    found: dict[Attachment, Any] = {}
    for module in model.modules():
        own = vars(module)
        for name in _HOOKS:
            for key, hook in (own.get(name) or {}).items():
                if not collects_for_transformers(hook):
                    found[module, name, key] = hook
        if _FORWARD in own:
            found[module, _FORWARD, own[_FORWARD]] = own[_FORWARD]
    return found


def collects_for_transformers(hook: Any) -> bool:
    """Tell whether a hook is one with which transformers collects hidden states."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.utils.")


@contextmanager
def untouched(model: nn.Module, moving: Callable[[], set[Attachment]] = set) -> Iterator[None]:
    """Lend the model out ``at_rest``, and take away every hook and forward that is left in it.

    Args:
        model: to lend out.
        moving: returns what belongs to memories that may go out and come back inside the block, as
            when the unedited model is asked: that is left as it is.
    """
    before, moved = attachments(model), moving()
    with uninterrupted() as gate:
        try:
            with at_rest(model), gate.open():
                yield
        finally:
            now, returned = attachments(model), moving()
            wanted = before
            if returned != moved:
                wanted = {key: hook for key, hook in before.items() if key not in moved}
                wanted |= {key: hook for key, hook in now.items() if key in returned}
            if list(wanted) != list(now):
                _attach(model, wanted)


def _attach(model: nn.Module, wanted: dict[Attachment, Any]) -> None:
    """Make ``wanted`` all that hangs on the modules of a model."""
    for module, name, key in attachments(model):
        if name == _FORWARD:
            del vars(module)[_FORWARD]
        else:
            del vars(module)[name][key]
    for (module, name, key), hook in wanted.items():
        if name == _FORWARD:
            vars(module)[_FORWARD] = hook
        else:
            vars(module)[name][key] = hook
