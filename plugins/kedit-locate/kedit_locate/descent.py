"""Steps of one length straight down the gradient, for one shift an edit, each kept within a radius.

Adam moves every coordinate about as far, however little it matters, and what a value
disturbs grows with the square of its shift. Straight steps come out shorter.
"""

import torch
from torch import Tensor


class Descent:
    """The shifts of one site.

    Attributes:
        shift: (requests, width), zero at first.
    """

    def __init__(self, like: Tensor, radius: Tensor, unit: Tensor) -> None:
        self.shift = torch.zeros_like(like)
        self._radius = radius  # (requests,)
        self._unit = unit[:, None]  # (requests, 1)

    def step(self, gradient: Tensor, lr: float, active: Tensor) -> None:
        """Move the active shifts, then project each back to its radius.

        Args:
            gradient: (requests, width); where it is zero nothing moves.
            lr: length of the step, in units of each shift.
            active: (requests,) which ones move.
        """
        tiny = torch.finfo(gradient.dtype).tiny
        moved = self.shift - lr * self._unit * gradient / gradient.norm(
            dim=1, keepdim=True
        ).clamp_min(tiny)
        norm = moved.norm(dim=1).clamp_min(tiny)  # (requests,)
        moved = moved * (self._radius / norm).clamp_max(1)[:, None]
        self.shift = torch.where(active[:, None], moved, self.shift)
