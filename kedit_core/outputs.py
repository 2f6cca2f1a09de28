"""The hidden states in what a module returns: some return a tensor, some a tuple."""

from typing import Any

from torch import Tensor


def first_tensor(output: Any) -> Tensor:
    """Return the hidden states of a module's output, a tensor or a tuple that starts with one."""
    first = output if isinstance(output, Tensor) else output[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"a module returned {type(output).__name__} without hidden states")
    return first


def replace_first(output: Any, hidden: Tensor) -> Any:
    """Return ``output`` with its hidden states replaced by ``hidden``."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])
