"""The Triton side of this package's kernels; importing it imports triton.

It is a module of its own so that ``kernels.py`` costs nobody the import of triton who has no GPU.
Tests run it under the interpreter in a process of their own: ``TRITON_INTERPRET`` is read where
``triton.jit`` decorates, in Triton's own library too.

Every load is upcast before anything is computed with it. On a GPU that is what float32 accumulation
means; under the interpreter, whose bfloat16 arithmetic is garbage, it is what makes it usable, so
there is one code path for both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}

# Few tokens and wide features: a batch of questions has some ten tokens a row, and a small block of
# them leaves enough programs to fill a GPU.
TOKENS, FEATURES = 4, 512


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def add_rank_one(  # type: ignore[no-untyped-def]
    out, y, x, u, v, tokens, in_features, out_features,
    y_row, y_token, y_feature, x_row, x_token, x_feature, u_row, u_feature, v_row, v_feature,
    ACCUMULATOR: tl.constexpr, TOKENS: tl.constexpr, FEATURES: tl.constexpr,
):
    # fmt: on
    """Fill ``TOKENS`` tokens of one row of ``out``, which is contiguous; the rest has any strides."""
    blocks = tl.cdiv(tokens, TOKENS)
    program = tl.program_id(0)
    # In 64 bits: a batch of long rows has more elements than 32 bits count.
    row = (program // blocks).to(tl.int64)
    token = (program % blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    there = token < tokens  # (TOKENS,)
    feature = tl.arange(0, FEATURES).to(tl.int64)

    x += row * x_row + token[:, None] * x_token
    u += row * u_row
    products = tl.zeros((TOKENS, FEATURES), dtype=ACCUMULATOR)
    for start in range(0, in_features, FEATURES):
        column = start + feature
        inside = column < in_features
        x_tile = tl.load(
            x + column[None, :] * x_feature, mask=there[:, None] & inside[None, :], other=0.0
        )
        u_tile = tl.load(u + column * u_feature, mask=inside, other=0.0)
        products += x_tile.to(ACCUMULATOR) * u_tile.to(ACCUMULATOR)[None, :]
    inner = tl.sum(products, axis=1)  # (TOKENS,)

    y += row * y_row + token[:, None] * y_token
    v += row * v_row
    out += (row * tokens + token[:, None]) * out_features
    for start in range(0, out_features, FEATURES):
        column = start + feature
        inside = column < out_features
        both = there[:, None] & inside[None, :]
        y_tile = tl.load(y + column[None, :] * y_feature, mask=both, other=0.0)
        v_tile = tl.load(v + column * v_feature, mask=inside, other=0.0)
        moved = y_tile.to(ACCUMULATOR) + inner[:, None] * v_tile.to(ACCUMULATOR)[None, :]
        tl.store(out + column[None, :], moved.to(out.dtype.element_ty), mask=both)


def per_row_rank_one(y: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return y_i + v_i (u_i·x_i), as the operator in ``kernels.py`` does."""
    rows, tokens, out_features = y.shape
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    accumulator = ACCUMULATORS[torch.promote_types(y.dtype, torch.float32)]
    # Triton launches on the current device, and the tensors may live on another one.
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        add_rank_one[(rows * triton.cdiv(tokens, TOKENS),)](
            out,
            *(y, x, u, v),
            *(tokens, x.shape[2], out_features),
            *(*y.stride(), *x.stride(), *u.stride(), *v.stride()),
            ACCUMULATOR=accumulator,
            TOKENS=TOKENS,
            FEATURES=FEATURES,
        )
    return out
