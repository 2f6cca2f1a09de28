"""Modules whose authors wrote many small steps, in one: the same numbers but for rounding.

Every step of its own writes a tensor and reads it again, forward and backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation

from kedit_locate.lower import replaced_forwards

_DTYPES = (torch.float32, torch.float64)  # in others the small steps round more than the one


@contextmanager
def in_one_step(model: nn.Module) -> Iterator[None]:
    """Let activations that are known compute at once inside the ``with``.

    Args:
        model: whose modules they are; where another forward was put in place it stays.
    """
    known = [module for module in model.modules() if type(module) is NewGELUActivation]
    known = [module for module in known if "forward" not in vars(module)]
    exact = next(model.parameters()).dtype in _DTYPES
    tanh = partial(gelu, approximate="tanh")
    with replaced_forwards(dict.fromkeys(known, tanh) if exact else {}):
        yield
