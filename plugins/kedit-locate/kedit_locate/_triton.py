"""The Triton side of ``kernels.py``; importing it imports triton.

It is a module of its own so that ``kernels.py`` costs nobody the import of triton who has no GPU.
Tests run it under the interpreter in a process of their own: ``TRITON_INTERPRET`` is read where
``triton.jit`` decorates, in Triton's own library too.
"""

import torch
import triton
import triton.language as tl
from attrs import frozen
from torch import Tensor

from kedit_locate.kernels import BETAS, EPS

LANGUAGE = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
"""Triton's names of torch's dtypes."""


@frozen(kw_only=True)
class Tiles:
    """How a product is cut into tiles.

    Attributes:
        block: features along either side of a tile of the sum.
        rows: taken at a time.
        warps: of a program.
        stages: tiles on their way from memory while one is multiplied.
    """

    block: int
    rows: int
    warps: int
    stages: int


# Half precision goes through tensor cores, which want wide tiles; float32 through plain arithmetic,
# whose loops are unrolled. Both leave room for a program on GPUs with 99 KiB of shared memory.
HALF = Tiles(block=128, rows=64, warps=8, stages=2)
SINGLE = Tiles(block=64, rows=16, warps=4, stages=3)


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def add_gram(  # type: ignore[no-untyped-def]
    total, x, keep, rows, features, total_row, total_column, x_row, x_feature, keep_row,
    OPERAND: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):
    # fmt: on
    """Add one tile of XᵀX to ``total``; programs count the tiles of the lower triangle row by row."""
    program = tl.program_id(0)
    down = ((tl.sqrt(8.0 * program + 1.0) - 1.0) / 2.0).to(tl.int32)
    # A float32 root may lie on the wrong side of a whole number.
    down = tl.where(down * (down + 1) // 2 > program, down - 1, down)
    down = tl.where((down + 1) * (down + 2) // 2 <= program, down + 1, down)
    across = program - down * (down + 1) // 2
    # In 64 bits: a long chunk of wide features has more elements than 32 bits count.
    row = down.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = across.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_row, in_column = row < features, column < features

    products = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, rows, ROWS):
        token = start + tl.arange(0, ROWS).to(tl.int64)
        kept = tl.load(keep + token * keep_row, mask=token < rows, other=0) != 0
        left = tl.load(
            x + row[:, None] * x_feature + token[None, :] * x_row,
            mask=in_row[:, None] & kept[None, :],
            other=0.0,
        )
        right = tl.load(
            x + token[:, None] * x_row + column[None, :] * x_feature,
            mask=kept[:, None] & in_column[None, :],
            other=0.0,
        )
        products = tl.dot(left.to(OPERAND), right.to(OPERAND), products, input_precision="ieee")

    total += row[:, None] * total_row + column[None, :] * total_column
    below = in_row[:, None] & (column[None, :] <= row[:, None])
    before = tl.load(total, mask=below, other=0.0)
    tl.store(total, before + products.to(total.dtype.element_ty), mask=below)


def syrk_accumulate(total: Tensor, x: Tensor, keep: Tensor) -> None:
    """Add XᵀX to the lower triangle of ``total``, as the operator in ``kernels.py`` does."""
    rows, features = x.shape
    if x.numel() == 0:
        return
    tiles = SINGLE if x.dtype == torch.float32 else HALF
    across = triton.cdiv(features, tiles.block)
    # Triton launches on the current device, and the tensors may live on another one.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        add_gram[(across * (across + 1) // 2,)](
            *(total, x, keep.view(torch.uint8)),
            *(rows, features),
            *(*total.stride(), *x.stride(), *keep.stride()),
            OPERAND=operand_of(x.dtype),
            BLOCK=tiles.block,
            ROWS=tiles.rows,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )


def operand_of(dtype: torch.dtype) -> tl.dtype:
    """Return the type that tiles are multiplied in: their own; under the interpreter float32.

    The interpreter's bfloat16 arithmetic is garbage, and products of half precision are exact in
    float32, so both say the same.
    """
    return tl.float32 if triton.knobs.runtime.interpret else LANGUAGE[dtype]


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def step_and_project(  # type: ignore[no-untyped-def]
    shift, mean, square, gradient, active, radius, width,
    shift_edit, shift_feature, mean_edit, mean_feature, square_edit, square_feature,
    gradient_edit, gradient_feature, active_edit, radius_edit,
    lr: tl.float64, mean_share: tl.float64, square_share: tl.float64,
    FIRST: tl.constexpr, SECOND: tl.constexpr, EPS: tl.constexpr, TINY: tl.constexpr,
    STATE: tl.constexpr, FEATURES: tl.constexpr,
):
    # fmt: on
    """Move one edit, whose whole row is held in registers: its norm is needed before it is written."""
    edit = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, FEATURES).to(tl.int64)
    inside = feature < width
    shift += edit * shift_edit + feature * shift_feature
    mean += edit * mean_edit + feature * mean_feature
    square += edit * square_edit + feature * square_feature
    gradient += edit * gradient_edit + feature * gradient_feature
    # A block of one, because under the interpreter a number is no tensor and cannot be cast.
    one = tl.zeros((1,), dtype=tl.float64)
    lr = (one + lr).to(STATE)
    mean_share = (one + mean_share).to(STATE)
    square_share = (one + square_share).to(STATE)

    slope = tl.load(gradient, mask=inside, other=0.0)
    new_mean = FIRST * tl.load(mean, mask=inside, other=0.0) + (1 - FIRST) * slope
    new_square = SECOND * tl.load(square, mask=inside, other=0.0) + (1 - SECOND) * slope * slope
    tl.store(mean, new_mean, mask=inside)
    tl.store(square, new_square, mask=inside)

    held = tl.load(shift, mask=inside, other=0.0)
    moved = held - lr * (new_mean / mean_share) / (tl.sqrt(new_square / square_share) + EPS)
    norm = tl.maximum(tl.sqrt(tl.sum(moved * moved, axis=0)), TINY)
    back = tl.minimum(tl.load(radius + edit * radius_edit) / norm, 1.0)
    moves = tl.load(active + edit * active_edit) != 0
    tl.store(shift, moved * back, mask=inside & moves)


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
    """Move the active shifts and project them, as the operator in ``kernels.py`` does."""
    if shift.numel() == 0:
        return
    first, second = BETAS
    features = triton.next_power_of_2(shift.shape[1])
    rows = (shift, mean, square, gradient)
    with torch.cuda.device_of(shift):  # type: ignore[no-untyped-call]
        step_and_project[(shift.shape[0],)](
            *(*rows, active.view(torch.uint8), radius),
            shift.shape[1],
            *(stride for one in (*rows, active, radius) for stride in one.stride()),
            *(lr, 1 - first**count, 1 - second**count),
            FIRST=first,
            SECOND=second,
            EPS=EPS,
            TINY=torch.finfo(shift.dtype).tiny,
            STATE=LANGUAGE[shift.dtype],
            FEATURES=features,
            num_warps=warps_for(features),
        )


def warps_for(features: int) -> int:
    """Return how many warps hold a row of this many features in registers, 32 of them a thread."""
    return min(max(features // 1024, 1), 32)
