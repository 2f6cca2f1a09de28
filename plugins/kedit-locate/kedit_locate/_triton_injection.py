"""The Triton side of ``injection_kernels.py``; importing it imports triton.

Every load is upcast before anything is computed with it. On a GPU that is what rounding once means;
under the interpreter, whose bfloat16 arithmetic is garbage, it is what makes it usable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

EXACT = {torch.float32: tl.float32, torch.float64: tl.float64}
"""What sums are taken in."""

FEATURES = 1024


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def inject(  # type: ignore[no-untyped-def]
    out_a, out_b, hidden_a, hidden_b, shift_a, shift_b, rows, at, tokens, width,
    a_row, a_token, a_feature, b_row, b_token, b_feature,
    shift_a_edit, shift_a_feature, shift_b_edit, shift_b_feature, rows_row, at_row,
    EXACT: tl.constexpr, FEATURES: tl.constexpr,
):
    # fmt: on
    """Fill one token of one row of both outputs, which are contiguous; the rest has any strides."""
    # In 64 bits: a batch of long rows has more elements than 32 bits count.
    program = tl.program_id(0).to(tl.int64)
    row, token = program // tokens, program % tokens
    feature = tl.program_id(1).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
    inside = feature < width
    here = tl.load(at + row * at_row) == token
    edit = tl.load(rows + row * rows_row)
    added = inside & here

    a = tl.load(hidden_a + row * a_row + token * a_token + feature * a_feature, mask=inside)
    b = tl.load(hidden_b + row * b_row + token * b_token + feature * b_feature, mask=inside)
    to_a = tl.load(shift_a + edit * shift_a_edit + feature * shift_a_feature, mask=added, other=0.0)
    to_b = tl.load(shift_b + edit * shift_b_edit + feature * shift_b_feature, mask=added, other=0.0)
    moved_a = a.to(EXACT) + to_a.to(a.dtype).to(EXACT)
    moved_b = b.to(EXACT) + to_b.to(b.dtype).to(EXACT)
    place = program * width + feature
    # Chosen, not added as zero: that would turn a negative zero into a positive one.
    tl.store(out_a + place, tl.where(here, moved_a.to(a.dtype), a), mask=inside)
    tl.store(out_b + place, tl.where(here, moved_b.to(b.dtype), b), mask=inside)


def two_site_inject(
    hidden_a: Tensor, hidden_b: Tensor, shift_a: Tensor, shift_b: Tensor, rows: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both sites with their shifts, as the operator in ``injection_kernels.py`` does."""
    count, tokens, width = hidden_a.shape
    out_a, out_b = (
        torch.empty_like(one, memory_format=torch.contiguous_format)
        for one in (hidden_a, hidden_b)
    )
    if out_a.numel() == 0:
        return out_a, out_b
    given = (hidden_a, hidden_b, shift_a, shift_b, rows, at)
    # Triton launches on the current device, and the tensors may live on another one.
    with torch.cuda.device_of(hidden_a):  # type: ignore[no-untyped-call]
        inject[(count * tokens, triton.cdiv(width, FEATURES))](
            *(out_a, out_b, *given),
            *(tokens, width),
            *(stride for one in given for stride in one.stride()),
            EXACT=EXACT[torch.promote_types(hidden_a.dtype, torch.float32)],
            FEATURES=FEATURES,
        )
    return out_a, out_b
