"""Adam on one shift an edit, each kept within a radius."""

import torch
from torch import Tensor

from kedit_locate.kernels import adam_clamp_step


class Adam:
    """The shifts of one site and what Adam keeps of them.

    Attributes:
        shift: (requests, width), zero at first.
    """

    def __init__(self, like: Tensor, radius: Tensor) -> None:
        self.shift = torch.zeros_like(like)
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)
        self._radius = radius  # (requests,)
        self._count = 0

    def step(self, gradient: Tensor, lr: float, active: Tensor) -> None:
        """Move the active shifts, then project each back to its radius.

        Args:
            gradient: (requests, width).
            lr: the step size.
            active: (requests,) which ones move; the others do not, not even by momentum.
        """
        self._count += 1
        state = (self.shift, self._mean, self._square)
        adam_clamp_step(*state, gradient, active, self._radius, lr, self._count)
