"""The Triton side of ``writing_kernels.py``; importing it imports triton.

Every load is upcast before anything is computed with it. On a GPU that is what float32 accumulation
means; under the interpreter, whose bfloat16 arithmetic is garbage, it is what makes it usable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile of the weight and the ranks multiplied at a time; factors are float32, so no tensor cores.
ROWS, COLUMNS, RANKS, WARPS = 64, 128, 16, 8


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def write_sum(  # type: ignore[no-untyped-def]
    out, base, left, right, rows, columns, ranks,
    out_row, out_column, base_row, base_column, left_row, left_rank, right_rank, right_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):
    # fmt: on
    """Fill one tile of ``out``; all four have any strides."""
    across = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    # In 64 bits: a weight has more elements than 32 bits count.
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    in_row, in_column = row < rows, column < columns
    inside = in_row[:, None] & in_column[None, :]

    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, ranks, RANKS):
        rank = start + tl.arange(0, RANKS).to(tl.int64)
        in_rank = rank < ranks
        left_tile = tl.load(
            left + row[:, None] * left_row + rank[None, :] * left_rank,
            mask=in_row[:, None] & in_rank[None, :],
            other=0.0,
        )
        right_tile = tl.load(
            right + rank[:, None] * right_rank + column[None, :] * right_column,
            mask=in_rank[:, None] & in_column[None, :],
            other=0.0,
        )
        total = tl.dot(
            left_tile.to(tl.float32), right_tile.to(tl.float32), total, input_precision="ieee"
        )

    base += row[:, None] * base_row + column[None, :] * base_column
    total += tl.load(base, mask=inside, other=0.0).to(tl.float32)
    out += row[:, None] * out_row + column[None, :] * out_column
    tl.store(out, total.to(out.dtype.element_ty), mask=inside)


def low_rank_write(out: Tensor, base: Tensor, left: Tensor, right: Tensor) -> None:
    """Fill ``out``, as the operator in ``writing_kernels.py`` does."""
    rows, columns = out.shape
    if out.numel() == 0:
        return
    # Triton launches on the current device, and the tensors may live on another one.
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        write_sum[(triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS),)](
            *(out, base, left, right),
            *(rows, columns, left.shape[1]),
            *(*out.stride(), *base.stride(), *left.stride(), *right.stride()),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            RANKS=RANKS,
            num_warps=WARPS,
        )
