"""How well posed a symmetric positive definite system is."""

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS, _VECTORS = 12, 4


def condition_of(
    multiply: Callable[[Tensor], Tensor], solve: Callable[[Tensor], Tensor], like: Tensor
) -> float:
    """Return an estimate, from below, of the ratio of a matrix's largest and smallest eigenvalue.

    Both are met by a few rounds of block power iteration from a seeded start (Golub & Van Loan, Matrix
    Computations, §8.2): that says within a fraction of it what a decomposition takes n³ to say.

    Args:
        multiply: by the matrix, (n, vectors).
        solve: by the matrix, (n, vectors).
        like: (n, …) float64, for size and device.
    """
    if not len(like):
        return 1.0
    return max(_reach(multiply, like) * _reach(solve, like), 1.0)


def _reach(apply: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Return how much ``apply`` stretches at the most, as far as a few rounds show."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), min(_VECTORS, len(like)), generator=generator, dtype=like.dtype)
    block = start.to(like.device)
    for _ in range(_ROUNDS):
        block = apply(torch.linalg.qr(block).Q)
    return float(torch.linalg.matrix_norm(block, 2))
