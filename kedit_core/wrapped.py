"""The model inside what users put around it: ``torch.compile`` and PEFT adapters.

Hooks that are added after compiling may not fire in a compiled graph, so edits are computed on the
module that was compiled. It shares its parameters with the compiled one, which therefore sees what
is written into them. The same holds for a PEFT model, whose adapters lie inside the layers of the
model that it wraps.
"""

from torch import nn

from kedit_core.errors import ModelError

BASE_LAYER = "base_layer"
"""What PEFT calls the module that an adapter was put around."""

_COMPILED = "_orig_mod"


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model that computes eagerly and whose parameter paths are the plain ones.

    Args:
        model: plain, compiled by ``torch.compile(model)``, or a PEFT model; one around the other too.

    Raises:
        ModelError: a part of the model alone was compiled into a module of its own, or the adapter is
            no layer inside the model but a prompt before it.
    """
    while True:
        compiled = model._modules.get(_COMPILED)
        if compiled is not None:
            model = compiled
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            base = model.get_base_model()  # type: ignore[operator]
            if base is getattr(model, "base_model", None):
                raise ModelError(
                    type(model).__name__,
                    "its adapter is a learned prompt, which stands in no layer; edit the model without it",
                )
            model = base
        else:
            break
    inside = next((path for path, one in model.named_modules() if _COMPILED in one._modules), None)
    if inside is not None:
        raise ModelError(
            inside,
            "was compiled into a module of its own, which renames parameters; compile the whole model, "
            f"or call {inside}.compile(), which works in place",
        )
    return model


def adapted_paths(model: nn.Module) -> tuple[str, ...]:
    """Return how the paths of adapter modules begin: all beside ``base_layer`` in what PEFT wrapped."""
    return tuple(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module._modules.get(BASE_LAYER), nn.Module)
        for name in module._modules
        if name != BASE_LAYER
    )
