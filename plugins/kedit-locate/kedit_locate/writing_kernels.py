"""Writing an edited weight: cast(base + left·right), with a Triton kernel where there is Triton.

The torch body is the sum of ``kedit_core.sums``, chunk by chunk and bit for bit: what a method writes
on CPU, an export merges to the same bits. It holds the sum in float32, as that one does; on a GPU a
tile is cast before it leaves its program, so no float32 copy of the weight ever exists.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from kedit_core.sums import EXPORT_RANKS, chunk_product


@torch.library.custom_op("kedit_locate::low_rank_write", mutates_args=("out",))
def low_rank_write(out: Tensor, base: Tensor, left: Tensor, right: Tensor) -> None:
    """Fill ``out`` with cast(base + left @ right), summed in float32 (float64 where ``base`` is).

    It fits ``Weights.add(delta, write=…)``. Any strides will do; a Conv1D's weight is a transposed
    view, and both memory orders are written as they lie.

    Args:
        out: (out_features, in_features), never added to.
        base: (out_features, in_features), the original.
        left: (out_features, ranks).
        right: (ranks, in_features).

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check_shapes(out, base, left, right)
    _body(out, base, left, right)


@low_rank_write.register_fake
def _(out: Tensor, base: Tensor, left: Tensor, right: Tensor) -> None:
    _check_shapes(out, base, left, right)


if find_spec("triton") is not None:

    @low_rank_write.register_kernel("cuda")
    def _(out: Tensor, base: Tensor, left: Tensor, right: Tensor) -> None:
        # Only here: on a machine without a GPU nobody should wait for triton.
        from kedit_locate import _triton_writing

        _check_shapes(out, base, left, right)
        if torch.float64 in {one.dtype for one in (out, base, left, right)}:
            _body(out, base, left, right)
        else:
            _triton_writing.low_rank_write(out, base, left, right)


def _body(out: Tensor, base: Tensor, left: Tensor, right: Tensor) -> None:
    exact = torch.promote_types(base.dtype, torch.float32)
    total = base.to(exact, copy=True)
    chunk = EXPORT_RANKS[-1]
    for start in range(0, left.shape[1], chunk):
        ranks = slice(start, start + chunk)
        total += chunk_product(left[:, ranks].to(exact), right[ranks].to(exact))
    out.copy_(total)


def _check_shapes(out: Tensor, base: Tensor, left: Tensor, right: Tensor) -> None:
    """See that the shapes agree: torch would broadcast what does not, a kernel read past its end."""
    agree = (
        (out.ndim, left.ndim, right.ndim) == (2, 2, 2)
        and base.shape == out.shape
        and left.shape[1] == right.shape[0]
        and out.shape == (left.shape[0], right.shape[1])
    )
    if not agree:
        shapes = ", ".join(str(tuple(one.shape)) for one in (out, base, left, right))
        raise ValueError(
            f"out, base, left, right are {shapes}; (out, in) twice, (out, ranks) and (ranks, in) are "
            "needed"
        )
