"""What a model says at some tokens, and how that changes, without logits of the whole vocabulary.

The head is read in slices that fit a cache. Each token's loss and its gradient are summed up slice by slice,
as an online softmax does (Milakov & Gimelshein, 2018, arXiv:1805.02867), so that every number of the head is
fetched once a step, where a forward and a backward pass fetch it twice and keep logits between. In a
dtype of less than 32 bits sums of slices would lose too much, and the logits are kept.
"""

from collections.abc import Iterator
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core.untouched import attachments

_CPU, _GPU = 2**19, 2**26  # numbers of the head in a slice
_DTYPES = (torch.float32, torch.float64)


@frozen(kw_only=True)
class Head:
    """The matrix that turns hidden states into logits.

    Attributes:
        weight: (vocabulary, width).
        bias: (vocabulary,) or None.
    """

    weight: Tensor
    bias: Tensor | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (tokens, vocabulary).

        Args:
            hidden: (tokens, width).
        """
        return nn.functional.linear(hidden, self.weight, self.bias)

    def slices(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield part after part: which entries, their logits (tokens, entries), their weights.

        Args:
            hidden: (tokens, width).
        """
        vocabulary, width = self.weight.shape
        step = max((_CPU if hidden.device.type == "cpu" else _GPU) // width, 1)
        for start in range(0, vocabulary, step):
            some = slice(start, start + step)
            weight = self.weight[some]
            bias = None if self.bias is None else self.bias[some]
            yield some, nn.functional.linear(hidden, weight, bias), weight


def exact(dtype: torch.dtype) -> torch.dtype:
    """Return what losses and shifts are kept in: float32, or float64 in a float64 model.

    Args:
        dtype: of the model.
    """
    return torch.promote_types(dtype, torch.float32)


def head_of(model: nn.Module) -> Head | None:
    """Return the head where it is an exact matrix and nothing else; else None.

    Args:
        model: that may have one.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or attachments(head) or head.weight.dtype not in _DTYPES:
        return None
    return Head(weight=head.weight, bias=head.bias)


def losses(head: Head, hidden: Tensor, target: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Return the NLL of targets, (targets,), and how far anchors moved, KL(now ‖ before), (anchors,).

    Args:
        head: of the model.
        hidden: (targets + anchors, width) what the head would read.
        target: (targets,) ids.
        said: (anchors, vocabulary) log-probabilities before.
    """
    found: tuple[Tensor, Tensor] = _Losses.apply(hidden, head, target, said)  # type: ignore[no-untyped-call]
    return found


def losses_of(logits: Tensor, target: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same losses from logits.

    Args:
        logits: (targets + anchors, vocabulary).
        target: as ``losses`` takes it.
        said: as ``losses`` takes it.
    """
    saying, anchored = torch.split(logits, [len(target), len(said)])
    now = torch.log_softmax(anchored, dim=-1)  # (anchors, vocabulary)
    apart = (now.exp() * (now - said)).sum(-1)
    return nn.functional.cross_entropy(saying, target, reduction="none"), apart


class _Losses(torch.autograd.Function):
    """The losses, with a gradient that is known as soon as they are: each is that of one token."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, target: Tensor, said: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted, count = ctx.needs_input_grad[0], len(target)
        sums = _Sums(hidden, len(said), wanted=wanted)
        own = sums.total.new_zeros(count)  # (targets,) their logits
        first: Tensor | None = (
            None  # (anchors, 1) about how much all logits lie above what was said
        )
        for some, logits, weight in head.slices(hidden):
            place = target - some.start
            inside = (place >= 0) & (place < logits.shape[1])
            at = place.clamp(0, logits.shape[1] - 1)
            own = torch.where(inside, logits[:count].gather(1, at[:, None])[:, 0], own)
            moved = logits[count:] - said[:, some]
            first = moved[:, :1] if first is None else first
            sums.add(logits, moved - first, weight)
        level = sums.top + sums.total.log()  # (tokens,)
        offset = torch.zeros_like(level[count:]) if first is None else first[:, 0]
        if wanted:
            ctx.save_for_backward(sums.gradient(head.weight[target]))
        return level[:count] - own, sums.mean + offset - level[count:]

    @staticmethod
    def backward(ctx: Any, nll: Tensor, apart: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * torch.cat([nll, apart])[:, None], None, None, None


class _Sums:
    """Sums over the vocabulary so far, relative to the greatest logit so far.

    Attributes:
        top: (tokens,) that logit.
        total: (tokens,) of e^logit.
    """

    def __init__(self, hidden: Tensor, anchors: int, *, wanted: bool) -> None:
        self.top = hidden.new_full(hidden.shape[:1], float("-inf"))
        self.total = torch.zeros_like(self.top)
        self._anchors = anchors
        self._moved = torch.zeros_like(self.top[:anchors])
        rows = (
            len(hidden) + anchors
        )  # of the anchors once by what is said, once by how far it moved
        self._weights = hidden.new_zeros((rows, hidden.shape[1])) if wanted else None

    @property
    def mean(self) -> Tensor:
        """Return what is said, weighed by how far it moved, (anchors,)."""
        return self._moved / self.total[len(self.total) - self._anchors :]

    def add(self, logits: Tensor, moved: Tensor, weight: Tensor) -> None:
        """Take a slice in.

        Args:
            logits: (tokens, entries), written over.
            moved: (anchors, entries).
            weight: (entries, width).
        """
        anchors = len(self.total) - self._anchors  # where they begin
        top = torch.maximum(self.top, logits.amax(1))
        less = (self.top - top).exp()
        shares = torch.cat([logits, moved]) if self._anchors else logits
        shares[: len(top)].sub_(top[:, None]).exp_()
        if self._anchors:
            shares[len(top) :].mul_(shares[anchors : len(top)])
        sums = shares.sum(1)
        self.total = self.total * less + sums[: len(top)]
        self._moved = self._moved * less[anchors:] + sums[len(top) :]
        self.top = top
        if self._weights is not None:
            self._weights.mul_(torch.cat([less, less[anchors:]])[:, None]).addmm_(shares, weight)

    def gradient(self, target: Tensor) -> Tensor:
        """Return the gradient of each token's loss, (tokens, width).

        Args:
            target: (targets, width) weights of the targets.
        """
        assert self._weights is not None
        count = len(target)
        said, moved = torch.split(self._weights, [len(self.total), self._anchors])
        said = said / self.total[:, None]
        moved = moved / self.total[count:, None] - self.mean[:, None] * said[count:]
        return torch.cat([said[:count] - target, moved])
