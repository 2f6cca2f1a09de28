"""The Triton side of ``kernels.py``; importing it imports triton.

Every load is upcast before anything is computed with it: float32 sums on a GPU, and under the interpreter,
whose bfloat16 arithmetic is garbage, what makes it usable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Queries, edits and components of a tile; a few queries must keep a whole GPU busy, so the memory is cut
# into spans that programs search side by side.
QUERIES, EDITS, WIDTH, WARPS = 16, 64, 32, 4
SPANS = 256


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def best_of_span(  # type: ignore[no-untyped-def]
    queries, memory, best, place, count, edits, width, span,
    query_row, query_column, memory_row, memory_column,
    QUERIES: tl.constexpr, EDITS: tl.constexpr, WIDTH: tl.constexpr,
):
    # fmt: on
    """Find the best row of one span of the memory for one block of queries."""
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    in_query = query < count
    begin = tl.program_id(1) * span
    top = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    # Never past the last row, should no product be larger than minus infinity.
    where = tl.zeros((QUERIES,), dtype=tl.int64) + begin
    for start in range(begin, tl.minimum(begin + span, edits), EDITS):
        edit = start + tl.arange(0, EDITS).to(tl.int64)
        in_edit = edit < edits
        products = tl.zeros((QUERIES, EDITS), dtype=tl.float32)
        for first in range(0, width, WIDTH):
            part = first + tl.arange(0, WIDTH).to(tl.int64)
            in_part = part < width
            asked = tl.load(
                queries + query[:, None] * query_row + part[None, :] * query_column,
                mask=in_query[:, None] & in_part[None, :],
                other=0.0,
            )
            held = tl.load(
                memory + part[:, None] * memory_column + edit[None, :] * memory_row,
                mask=in_part[:, None] & in_edit[None, :],
                other=0.0,
            )
            products = tl.dot(
                asked.to(tl.float32), held.to(tl.float32), products, input_precision="ieee"
            )
        products = tl.where(in_edit[None, :], products, float("-inf"))
        found = tl.max(products, axis=1)
        nearest = tl.argmax(products, axis=1).to(tl.int64) + start
        better = found > top
        where = tl.where(better, nearest, where)
        top = tl.where(better, found, top)
    out = tl.program_id(1).to(tl.int64) * count + query
    tl.store(best + out, top, mask=in_query)
    tl.store(place + out, where, mask=in_query)


def scope_top1(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best row of the memory for each query, as the operator in ``kernels.py`` does."""
    count, edits = queries.shape[0], memory.shape[0]
    span = max(EDITS, triton.cdiv(triton.cdiv(edits, SPANS), EDITS) * EDITS)
    spans = triton.cdiv(edits, span)
    best = torch.empty(spans, count, dtype=torch.float32, device=queries.device)
    place = torch.empty(spans, count, dtype=torch.int64, device=queries.device)
    if count:
        # Triton launches on the current device, and the tensors may live on another one.
        with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
            best_of_span[(triton.cdiv(count, QUERIES), spans)](
                *(queries, memory, best, place),
                *(count, edits, queries.shape[1], span),
                *(*queries.stride(), *memory.stride()),
                QUERIES=QUERIES,
                EDITS=EDITS,
                WIDTH=WIDTH,
                num_warps=WARPS,
            )
    top = best.amax(0)  # (queries,)
    # Of equal ones the first row, whichever a maximum over spans would name.
    first = torch.where(best == top, place, edits).amin(0)
    return top, first.clamp(max=edits - 1)
