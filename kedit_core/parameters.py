"""Which parameters of a model can be edited."""

import torch
from torch import Tensor, nn

from kedit_core.errors import ModelError

# Not the 8-bit floats: they mean nothing without their scale.
_EDITABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_plain(path: str, parameter: nn.Parameter) -> None:
    """See that a parameter is plain numbers in memory.

    Raises:
        ModelError: it is on the meta device, offloaded, quantised or of a kind of its own.
    """
    if parameter.device.type == "meta":
        raise ModelError(
            path,
            "its values are not in memory (meta or offloaded), so it cannot be edited; open the model "
            "whole, on one device",
        )
    # Quantisers hide packed numbers behind classes of their own, some of which name a float dtype.
    own = next(
        (
            type(one)
            for one in (parameter, parameter.data)
            if type(one) not in (nn.Parameter, Tensor)
        ),
        None,
    )
    if own is not None or parameter.dtype not in _EDITABLE:
        kind = str(parameter.dtype) if own is None else f"{own.__name__}, {parameter.dtype}"
        raise ModelError(
            path,
            f"is quantised or no plain parameter ({kind}), so it cannot be edited; open the model in "
            "float32, bfloat16 or float16",
        )


def check_untied(model: nn.Module, path: str) -> None:
    """See that a parameter has one use only.

    Raises:
        ModelError: it is tied to another one.
    """
    parameter = model.get_parameter(path)
    for other, found in model.named_parameters(remove_duplicate=False):
        if found is parameter and other != path:
            raise ModelError(
                path, f"is tied to {other}, an edit would change both; allow_tied=True permits it"
            )


def check_parameters(model: nn.Module) -> None:
    """See that all of a model can be run and written: said before the work, not at its end.

    Raises:
        ModelError: a parameter is offloaded or quantised.
    """
    for path, parameter in model.named_parameters():
        check_plain(path, parameter)
