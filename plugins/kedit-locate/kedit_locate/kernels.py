"""The operators of the engine: a plain torch body each, and a Triton kernel where there is Triton.

Both write into what they are given. The sum of a second moment is as large as a layer's weights
several times over, and the state of a search is three tensors that a step would otherwise make anew.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
"""How much of the running means of gradient and square a step of Adam keeps."""

EPS = 1e-8
"""What keeps a step of Adam from dividing by zero."""

_SUMS = (torch.float32, torch.float64)


@torch.library.custom_op("kedit_locate::syrk_accumulate", mutates_args=("total",))
def syrk_accumulate(total: Tensor, x: Tensor, keep: Tensor) -> None:
    """Add XᵀX over the kept rows to the lower triangle of ``total``; above the diagonal nothing changes.

    Products are summed in float32 over the rows of one call (float64 where ``x`` is), and added to
    ``total`` in its own dtype. Rows that are not kept are never read: what they hold may be no number.

    Args:
        total: (features, features), float32 or float64.
        x: (rows, features).
        keep: (rows,) bool.

    Raises:
        ValueError: the shapes or dtypes do not belong together.
    """
    _check_syrk(total, x, keep)
    _syrk_body(total, x, keep)


@syrk_accumulate.register_fake
def _(total: Tensor, x: Tensor, keep: Tensor) -> None:
    _check_syrk(total, x, keep)


def _syrk_body(total: Tensor, x: Tensor, keep: Tensor) -> None:
    kept = x[keep].to(torch.promote_types(x.dtype, torch.float32))  # (kept rows, features)
    total.add_((kept.T @ kept).tril_())


@torch.library.custom_op("kedit_locate::adam_clamp_step", mutates_args=("shift", "mean", "square"))
def adam_clamp_step(
    shift: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    active: Tensor,
    radius: Tensor,
    lr: float,
    count: int,
) -> None:
    """Move the shifts of all edits by one step of Adam, then project each back to its radius.

    An edit that is not active does not move, not even by momentum; its moments go on being averaged.

    Args:
        shift: (edits, width), float32 or float64.
        mean: (edits, width), running mean of the gradient.
        square: (edits, width), running mean of its square.
        gradient: (edits, width).
        active: (edits,) bool.
        radius: (edits,), the largest norm that a shift may have.
        lr: learning rate.
        count: which step this is, from 1.

    Raises:
        ValueError: the shapes or dtypes do not belong together, or ``count`` is no number of a step.
    """
    _check_adam(shift, mean, square, gradient, active, radius, count)
    first, second = BETAS
    mean.copy_(first * mean + (1 - first) * gradient)
    square.copy_(second * square + (1 - second) * gradient**2)
    step = lr * (mean / (1 - first**count)) / ((square / (1 - second**count)).sqrt() + EPS)
    moved = shift - step
    norm = moved.norm(dim=1).clamp(min=torch.finfo(moved.dtype).tiny)
    moved = moved * (radius / norm).clamp(max=1)[:, None]
    shift.copy_(torch.where(active[:, None], moved, shift))


@adam_clamp_step.register_fake
def _(
    shift: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    active: Tensor,
    radius: Tensor,
    lr: float,  # noqa: ARG001
    count: int,
) -> None:
    _check_adam(shift, mean, square, gradient, active, radius, count)


if find_spec("triton") is not None:

    @syrk_accumulate.register_kernel("cuda")
    def _(total: Tensor, x: Tensor, keep: Tensor) -> None:
        # Only here: on a machine without a GPU nobody should wait for triton.
        from kedit_locate import _triton

        _check_syrk(total, x, keep)
        if x.dtype == torch.float64:
            _syrk_body(total, x, keep)
        else:
            _triton.syrk_accumulate(total, x, keep)

    @adam_clamp_step.register_kernel("cuda")
    def _(
        shift: Tensor,
        mean: Tensor,
        square: Tensor,
        gradient: Tensor,
        active: Tensor,
        radius: Tensor,
        lr: float,
        count: int,
    ) -> None:
        from kedit_locate import _triton

        _check_adam(shift, mean, square, gradient, active, radius, count)
        state = (shift, mean, square, gradient, active, radius)
        _triton.adam_clamp_step(*state, lr, count)


def _check_syrk(total: Tensor, x: Tensor, keep: Tensor) -> None:
    """See that what a kernel would read past its end, or round, is as it expects."""
    agree = (
        (total.ndim, x.ndim, keep.ndim) == (2, 2, 1)
        and total.shape == (x.shape[1], x.shape[1])
        and keep.shape == x.shape[:1]
    )
    if not agree:
        shapes = ", ".join(str(tuple(one.shape)) for one in (total, x, keep))
        raise ValueError(
            f"total, x, keep are {shapes}; (features, features), (rows, features) and (rows,) are "
            "needed"
        )
    if total.dtype not in _SUMS or not x.dtype.is_floating_point or keep.dtype != torch.bool:
        raise ValueError(
            f"total, x, keep are {total.dtype}, {x.dtype}, {keep.dtype}; float32 or float64, a "
            "floating dtype, and bool are needed"
        )


def _check_adam(
    shift: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    active: Tensor,
    radius: Tensor,
    count: int,
) -> None:
    given = (shift, mean, square, gradient)
    agree = shift.ndim == 2 and all(one.shape == shift.shape for one in given)
    if not agree or any(one.shape != shift.shape[:1] for one in (active, radius)):
        shapes = ", ".join(str(tuple(one.shape)) for one in (*given, active, radius))
        raise ValueError(
            f"shift, mean, square, gradient, active, radius are {shapes}; four times (edits, width) "
            "and twice (edits,) are needed"
        )
    same = all(one.dtype == shift.dtype for one in (*given, radius))
    if shift.dtype not in _SUMS or not same or active.dtype != torch.bool:
        dtypes = ", ".join(str(one.dtype) for one in (*given, active, radius))
        raise ValueError(
            f"shift, mean, square, gradient, active, radius are {dtypes}; one of float32 and float64, "
            "and bool for active, are needed"
        )
    if count < 1:
        raise ValueError(f"count is {count}; the first step is 1, and is needed to undo its bias")
