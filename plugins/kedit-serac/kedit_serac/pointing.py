"""A pointer into the stored target: what is to be said next stands there, whatever token it is.

Beside what a counterfactual model makes of a text, it looks at the tokens of the target, each known by the one
before it. With x what the model reads of a token, h what it makes of it, W the rows of the base's head, and one
more place that stands for nothing,

    a = softmax(n + v·h,  τ (A h + S x) · K x_before(j)  for each token j of the target),

    h' = h + λ Σ a_j W_j / ‖W_j‖²,

so that the head gives token j about λ a_j more. S and K begin alike: what follows a token of the target is
found before anything was trained, and a target that no training met is said like any other. Pointing at what
was read is due to See et al. (2017, arXiv:1704.04368); there it has a distribution of its own.
"""

from typing import Any

import torch
from torch import Tensor, nn

_RANK = 128
_NOTHING, _LOUD = 5.0, 14.0
_SHARP = 1024  # divided by the width: a token meets itself at about 10, as it is read 0.1 loud (``decoders``)
_TINY = 1e-6


class Pointer(nn.Module):
    """Looks for what follows among the tokens of a target."""

    def __init__(self, width: int) -> None:
        """Make one for states of so many numbers, with random weights."""
        super().__init__()
        rank = min(width, _RANK)
        seek = torch.randn(rank, width) / rank**0.5
        self.asks, self.seeks = nn.Parameter(torch.zeros(rank, width)), nn.Parameter(seek)
        self.keys = nn.Parameter(seek.clone())
        self.nothing = nn.Parameter(torch.zeros(width))
        self.least, self.sharp, self.loud = (
            nn.Parameter(torch.tensor(one)) for one in (_NOTHING, _SHARP / width, _LOUD)
        )

    def forward(
        self,
        base: Any,
        hidden: Tensor,
        read: Tensor,
        before: Tensor,
        targets: Tensor,
        there: Tensor,
    ) -> Tensor:
        """Return what is added to hidden states, (rows, tokens, width).

        Args:
            base: lends the rows of its head.
            hidden: (rows, tokens, width) what was made of the tokens.
            read: (rows, tokens, width) what was read of them.
            before: (rows, targets, width) what was read before each token of the target.
            targets: (rows, targets) token ids of the target.
            there: (rows, targets) bool, False where a row's target is shorter.
        """
        asked = hidden @ self.asks.T + read @ self.seeks.T  # (rows, tokens, rank)
        found = self.sharp * asked @ (before @ self.keys.T).transpose(1, 2)
        found = found.masked_fill(~there[:, None].to(found.device), -torch.inf)
        nothing = self.least + hidden @ self.nothing
        shares = torch.cat([nothing[..., None], found], -1).softmax(-1)[..., 1:]
        head = base.get_output_embeddings().weight.detach()
        rows = head[targets.to(head.device)].to(hidden)  # (rows, targets, width)
        pointed: Tensor = self.loud * shares @ (rows / rows.square().sum(-1, True).clamp(min=_TINY))
        return pointed
