"""Adding the shifts of two sites at once, with a Triton kernel where there is Triton.

``two_site_inject`` returns new tensors and can be differentiated by all four of its inputs: it stands
in the forward whose gradient the search for values takes.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("kedit_locate::two_site_inject", mutates_args=())
def two_site_inject(
    hidden_a: Tensor, hidden_b: Tensor, shift_a: Tensor, shift_b: Tensor, rows: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what two sites write, with each row's own shift added at one of its tokens.

    A shift is cast to the dtype of its site before it is added, as where there is one site.

    Args:
        hidden_a: (rows, tokens, width), what the first site wrote.
        hidden_b: (rows, tokens, width), what the second one wrote.
        shift_a: (edits, width).
        shift_b: (edits, width).
        rows: (rows,) int64, which edit each row belongs to; not checked on a GPU, which would wait.
        at: (rows,) int64, the token that is shifted; likewise.

    Raises:
        ValueError: the shapes or dtypes do not belong together.
    """
    _check(hidden_a, hidden_b, shift_a, shift_b, rows, at)
    return _injected(hidden_a, shift_a, rows, at), _injected(hidden_b, shift_b, rows, at)


@two_site_inject.register_fake
def _(
    hidden_a: Tensor, hidden_b: Tensor, shift_a: Tensor, shift_b: Tensor, rows: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    _check(hidden_a, hidden_b, shift_a, shift_b, rows, at)
    return hidden_a.new_empty(hidden_a.shape), hidden_b.new_empty(hidden_b.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ARG001
    _, _, shift_a, shift_b, rows, at = inputs
    ctx.save_for_backward(rows, at)
    ctx.shifts = tuple((one.shape, one.dtype) for one in (shift_a, shift_b))


def _backward(ctx: Any, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor | None, ...]:
    rows, at = ctx.saved_tensors
    every = torch.arange(len(rows), device=rows.device)
    shifts = []
    for grad, (shape, dtype) in zip((grad_a, grad_b), ctx.shifts, strict=True):
        zeros = grad.new_zeros(shape, dtype=dtype)
        # Not index_add, which adds up in any order on a GPU: equal seeds must give equal deltas.
        shifts.append(zeros.index_put((rows,), grad[every, at].to(dtype), accumulate=True))
    return grad_a, grad_b, *shifts, None, None


two_site_inject.register_autograd(_backward, setup_context=_keep_for_backward)


if find_spec("triton") is not None:

    @two_site_inject.register_kernel("cuda")
    def _(
        hidden_a: Tensor,
        hidden_b: Tensor,
        shift_a: Tensor,
        shift_b: Tensor,
        rows: Tensor,
        at: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # Only here: on a machine without a GPU nobody should wait for triton.
        from kedit_locate import _triton_injection

        _check(hidden_a, hidden_b, shift_a, shift_b, rows, at)
        return _triton_injection.two_site_inject(hidden_a, hidden_b, shift_a, shift_b, rows, at)


def _injected(hidden: Tensor, shift: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    out = hidden.clone(memory_format=torch.contiguous_format)
    every = torch.arange(len(rows), device=rows.device)
    out[every, at] += shift[rows].to(hidden.dtype)
    return out


def _check(
    hidden_a: Tensor, hidden_b: Tensor, shift_a: Tensor, shift_b: Tensor, rows: Tensor, at: Tensor
) -> None:
    """See that the shapes agree: torch would broadcast what does not, a kernel read past its end."""
    given = (hidden_a, hidden_b, shift_a, shift_b, rows, at)
    agree = (
        (hidden_a.ndim, shift_a.ndim) == (3, 2)
        and hidden_b.shape == hidden_a.shape
        and shift_b.shape == shift_a.shape
        and shift_a.shape[1] == hidden_a.shape[2]
        and rows.shape == at.shape == hidden_a.shape[:1]
    )
    if not agree:
        shapes = ", ".join(str(tuple(one.shape)) for one in given)
        raise ValueError(
            f"hidden (twice), shift (twice), rows, at are {shapes}; (rows, tokens, width), (edits, "
            "width) and (rows,) are needed"
        )
    if hidden_b.dtype != hidden_a.dtype or {rows.dtype, at.dtype} != {torch.int64}:
        dtypes = ", ".join(str(one.dtype) for one in given)
        raise ValueError(
            f"hidden (twice), shift (twice), rows, at are {dtypes}; one dtype for both sites and "
            "int64 for rows and at are needed"
        )
