"""The operators of this package: a plain torch body each, and a Triton kernel where there is Triton.

``per_row_rank_one`` returns a new tensor and does not write into ``y``, for three reasons. It is
called in a forward hook, where ``y`` may be held by other hooks or be a view of something. Under
``torch.compile`` a functional operator needs no functionalising copy. And nothing is lost: both
forms read ``y`` once and write the result once.
"""

from importlib.util import find_spec

import torch
from torch import Tensor


@torch.library.custom_op("kedit_rome::per_row_rank_one", mutates_args=())
def per_row_rank_one(y: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return y_i + v_i (u_i·x_i) for every row i: what its own rank-one update adds to its output.

    Sums are taken in float32, or in float64 where ``y`` is; the result has the dtype of ``y``.

    Args:
        y: (rows, tokens, out_features), what a linear map wrote.
        x: (rows, tokens, in_features), what it read.
        u: (rows, in_features), right factor of each row's update.
        v: (rows, out_features), left factor of each row's update.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check_shapes(y, x, u, v)
    exact = torch.promote_types(y.dtype, torch.float32)
    inner = torch.bmm(x.to(exact), u.to(exact)[:, :, None])  # (rows, tokens, 1)
    moved = torch.addcmul(y.to(exact), inner, v.to(exact)[:, None])
    return moved.to(y.dtype).contiguous()


@per_row_rank_one.register_fake
def _(y: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    _check_shapes(y, x, u, v)
    return y.new_empty(y.shape)


if find_spec("triton") is not None:

    @per_row_rank_one.register_kernel("cuda")
    def _(y: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        # Only here: on a machine without a GPU nobody should wait for triton.
        from kedit_rome import _triton

        _check_shapes(y, x, u, v)
        return _triton.per_row_rank_one(y, x, u, v)


def _check_shapes(y: Tensor, x: Tensor, u: Tensor, v: Tensor) -> None:
    """See that the shapes agree: torch would broadcast what does not, a kernel read past its end."""
    agree = (
        (y.ndim, x.ndim, u.ndim, v.ndim) == (3, 3, 2, 2)
        and x.shape[:2] == y.shape[:2]
        and u.shape == (x.shape[0], x.shape[2])
        and v.shape == (y.shape[0], y.shape[2])
    )
    if not agree:
        shapes = ", ".join(str(tuple(one.shape)) for one in (y, x, u, v))
        raise ValueError(
            f"y, x, u, v are {shapes}; (rows, tokens, out), (rows, tokens, in), (rows, in) and "
            "(rows, out) are needed"
        )
