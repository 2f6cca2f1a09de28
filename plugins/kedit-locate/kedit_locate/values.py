"""Values: what the edited projection should write for the model to say the new target.

For each edit a shift δ is added to what one site (an MLP's down-projection, or a whole block)
writes at the subject's last token, and found by Adam on

    mean_i NLL(target | row i) + κ KL(P_δ ‖ P_0 at the anchor) + w ‖δ‖ / ‖h₀‖²,    ‖δ‖ ≤ c ‖h₀‖

where h₀ is what the site writes on the bare prompt (Meng et al., 2022, arXiv:2202.05262; the
weights of the terms as in the authors' code). Every step runs from the subject's last token on
(``suffix``).
"""

from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_core.progress import Progress
from kedit_locate.capture import replaced_output
from kedit_locate.config import Search
from kedit_locate.rows import EditRows
from kedit_locate.suffix import Suffix, exact, read_prefixes, run

_BETAS = (0.9, 0.999)
_EPS = 1e-8


@frozen(kw_only=True)
class Values:
    """What the search found, one row an edit.

    Attributes:
        shift: δ (requests, width).
        base: h₀ (requests, width); the value is ``base + shift``.
        nll: (requests,) mean over rows of the target's NLL a token, at the shift.
        steps: (requests,) updates made.
        apart: rows of different lengths were read apart, because pads between them would have changed
            what the model says.
    """

    shift: Tensor = field(repr=False)
    base: Tensor = field(repr=False)
    nll: tuple[float, ...]
    steps: tuple[int, ...]
    apart: bool = False

    @property
    def value(self) -> Tensor:
        """Return h₀ + δ, (requests, width)."""
        return self.base + self.shift


def search_values(
    model: nn.Module,
    edits: Sequence[EditRows],
    site: str,
    search: Search,
    progress: Progress,
    norm: Tensor | None = None,
) -> Values:
    """Return the value of every edit, all searched for at once; together or alone they come out the same.

    Args:
        model: in ``eval`` mode, parameters without ``requires_grad``.
        edits: rows of each edit.
        site: path of the module that the shift is added to.
        search: the settings.
        progress: told of each step.
        norm: (requests,) ‖h₀‖ that clamp and decay are relative to; by default that of ``model``. The
            activations of a model that was edited often have grown.

    Raises:
        ModelError: the loss of an edit is no number, for example because the model overflows.
    """
    suffixes = read_prefixes(model, edits)
    base, anchor = _unshifted(model, suffixes, site, len(edits))  # (requests, width or vocabulary)
    norm = base.norm(dim=1) if norm is None else norm.to(base)  # (requests,)
    radius = search.clamp * norm
    adam = _Adam(torch.zeros_like(base))
    active = torch.ones(len(edits), dtype=torch.bool, device=base.device)
    steps = torch.zeros(len(edits), dtype=torch.long, device=base.device)
    with progress.task("searching values", search.steps, "steps") as advance:
        for step in range(search.steps):
            shift = adam.shift.detach().requires_grad_()
            nll, divergence = _losses(model, suffixes, site, shift, anchor)
            # The gradient of a norm at zero is nothing, not nan.
            decay = search.decay * shift.norm(dim=1) / norm**2
            loss = nll + search.kl * divergence + decay  # (requests,)
            _check_finite(loss.detach())
            active &= loss.detach() >= search.stop
            if step == search.steps - 1 or not bool(active.any()):
                break
            adam.step(torch.autograd.grad(loss.sum(), shift)[0], search.lr, radius, active)
            steps += active
            advance(1)
    return Values(
        shift=adam.shift,
        base=base,
        nll=tuple(nll.detach().tolist()),
        steps=tuple(steps.tolist()),
        apart=len(suffixes) > 1,
    )


def _check_finite(loss: Tensor) -> None:
    """Refuse a loss (requests,) that is no number: compared with the bound it would pass for done."""
    if not bool(torch.isfinite(loss).all()):
        number = int((~torch.isfinite(loss)).nonzero()[0])
        raise ModelError(
            "the search for a value",
            f"the loss of edit {number} is not finite; the model overflows on its rows in this dtype",
        )


class _Adam:
    """Adam on one shift an edit; edits that are done do not move, not even by momentum."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift  # (requests, width)
        self._mean = torch.zeros_like(shift)
        self._square = torch.zeros_like(shift)
        self._count = 0

    def step(self, gradient: Tensor, lr: float, radius: Tensor, active: Tensor) -> None:
        """Move the active shifts, then project each back to its radius (requests,)."""
        self._count += 1
        first, second = _BETAS
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient**2
        mean = self._mean / (1 - first**self._count)
        square = self._square / (1 - second**self._count)
        moved = self.shift - lr * mean / (square.sqrt() + _EPS)
        norm = moved.norm(dim=1).clamp(min=torch.finfo(moved.dtype).tiny)
        moved = moved * (radius / norm).clamp(max=1)[:, None]
        self.shift = torch.where(active[:, None], moved, self.shift)


@torch.no_grad()
def _unshifted(
    model: nn.Module, suffixes: Sequence[Suffix], site: str, requests: int
) -> tuple[Tensor, Tensor]:
    """Return what the site writes on the bare prompts, and the log-probabilities at the anchors."""
    bases: dict[int, Tensor] = {}
    anchors: dict[int, Tensor] = {}
    for suffix in suffixes:
        written: list[Tensor] = []

        def look(hidden: Tensor, seen: list[Tensor] = written, of: Suffix = suffix) -> Tensor:
            seen.append(hidden.reshape(*of.ids.shape, -1)[:, of.at])
            return hidden

        with replaced_output(model, site, look):
            logits = run(model, suffix)
        own = written[0].to(exact(written[0].dtype))  # (rows, width)
        bases |= zip(suffix.bare_of, own[suffix.bare], strict=True)
        said = torch.log_softmax(logits[suffix.anchors, 0], dim=-1)
        anchors |= zip(suffix.anchor_of, said, strict=True)
    every = range(requests)
    return torch.stack([bases[n] for n in every]), torch.stack([anchors[n] for n in every])


def _losses(
    model: nn.Module, suffixes: Sequence[Suffix], site: str, shift: Tensor, anchor: Tensor
) -> tuple[Tensor, Tensor]:
    """Return per edit the mean NLL of its target and the divergence at its anchor, (requests,) each."""
    nll = torch.zeros(len(shift), dtype=shift.dtype, device=shift.device)
    divergence = torch.zeros_like(nll)
    for suffix in suffixes:

        def shifted(hidden: Tensor, of: Suffix = suffix) -> Tensor:
            flat = hidden.reshape(*of.ids.shape, -1)  # (rows, tokens, width)
            before, here, after = torch.split(flat, [of.at, 1, flat.shape[1] - of.at - 1], dim=1)
            here = here + shift[of.edit, None].to(flat.dtype)
            return torch.cat([before, here, after], dim=1).reshape(hidden.shape)

        with replaced_output(model, site, shifted):
            logits = run(model, suffix)  # (rows, wanted, vocabulary)
        said = torch.log_softmax(logits[suffix.row, suffix.place], dim=-1)  # (targets, vocabulary)
        own = said.gather(1, suffix.target[:, None])[:, 0]
        nll = nll.index_add(0, suffix.edit[suffix.row], -own * suffix.share.to(own.dtype))
        now = torch.log_softmax(logits[suffix.anchors, 0], dim=-1)  # (anchors, vocabulary)
        edits = suffix.edit[suffix.anchors]
        divergence = divergence.index_add(0, edits, (now.exp() * (now - anchor[edits])).sum(-1))
    return nll, divergence
