"""The search of a memory: for each query the edit with the largest product, in one pass over tiles.

No queries × memory matrix is ever there: a running maximum and its place are all that is kept, so a memory of a
hundred thousand edits takes no more room than its vectors.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

_TILE = 1024


@torch.library.custom_op("kedit_serac::scope_top1", mutates_args=())
def scope_top1(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest product of each query with a row of the memory, and which row that is.

    Products are summed in float32 (float64 where ``memory`` is). Of equal ones the first row counts.

    Args:
        queries: (queries, width).
        memory: (edits, width), at least one edit.

    Returns:
        best (queries,) float32, place (queries,) int64.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check_shapes(queries, memory)
    return _body(queries, memory)


@scope_top1.register_fake
def _(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    _check_shapes(queries, memory)
    best = queries.new_empty(queries.shape[0], dtype=_exact(memory))
    return best, torch.empty_like(best, dtype=torch.int64)


if find_spec("triton") is not None:

    @scope_top1.register_kernel("cuda")
    def _(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        # Only here: on a machine without a GPU nobody should wait for triton.
        from kedit_serac import _triton

        _check_shapes(queries, memory)
        if torch.float64 in (queries.dtype, memory.dtype):
            return _body(queries, memory)
        return _triton.scope_top1(queries, memory)


def _exact(memory: Tensor) -> torch.dtype:
    return torch.promote_types(memory.dtype, torch.float32)


def _body(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    exact = _exact(memory)
    asked = queries.to(exact)
    best = torch.full((len(queries),), -torch.inf, dtype=exact, device=queries.device)
    place = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(memory), _TILE):
        found, where = (asked @ memory[start : start + _TILE].to(exact).T).max(dim=1)
        better = found > best
        best = torch.where(better, found, best)
        place = torch.where(better, where + start, place)
    return best, place


def _check_shapes(queries: Tensor, memory: Tensor) -> None:
    agree = queries.ndim == memory.ndim == 2 and queries.shape[1] == memory.shape[1]
    if not agree or not memory.shape[0]:
        raise ValueError(
            f"queries and memory are {tuple(queries.shape)} and {tuple(memory.shape)}; (queries, width) and "
            "(edits, width) with at least one edit are needed"
        )
