"""A model as methods find it, and as they must leave it."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from kedit_core.interrupts import uninterrupted

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Lend the model out in ``eval`` mode and without ``requires_grad``, and put it back as it was.

    Mode, ``requires_grad`` and gradients of every module are restored, whatever happens inside.
    """
    training = [(module, module.training) for module in model.modules()]
    gradients = [(one, one.requires_grad, one.grad) for one in model.parameters()]
    with uninterrupted() as gate:
        try:
            model.eval()
            model.requires_grad_(False)
            for parameter, _, _ in gradients:
                parameter.grad = None  # or a backward pass inside would add to it in place
            with gate.open():
                yield
        finally:
            for module, mode in training:
                module.training = mode
            for parameter, wanted, gradient in gradients:
                parameter.requires_grad_(wanted)
                parameter.grad = gradient


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Lend the model out ``at_rest``, and take away every hook that is left in it.

    Not for a block in which memories go out and in again, as when the unedited model is asked:
    their hooks are new ones afterwards.
    """
    hooks = [
        (module, name, OrderedDict(found))
        for module in model.modules()
        for name in _HOOKS
        if (found := getattr(module, name, None)) is not None
    ]
    with uninterrupted() as gate:
        try:
            with at_rest(model), gate.open():
                yield
        finally:
            for module, name, found in hooks:
                held = getattr(module, name)
                if held.keys() != found.keys():
                    held.clear()
                    held.update(found)
