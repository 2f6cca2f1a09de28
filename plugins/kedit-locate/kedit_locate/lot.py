"""One lot of edits whose shifts are searched for together, step by step.

An edit that is done drops out: its rows are in no later forward, and its shift does not move.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.progress import Advance
from kedit_locate.adam import Adam
from kedit_locate.capture import replaced_output
from kedit_locate.config import Search
from kedit_locate.descent import Descent
from kedit_locate.parts import Part
from kedit_locate.saying import exact, losses, losses_of
from kedit_locate.suffix import Entered, enter, read, run


@frozen(kw_only=True)
class Site:
    """A module to whose output a shift is added.

    Attributes:
        path: of the module.
        clamp: the shift stays within this many ‖h₀‖; None for the search's.
        decay: weight of ‖δ‖ / ‖h₀‖²; None for the search's.
        norm: (requests,) ‖h₀‖ that clamp and decay are relative to; None for that of the model. The
            activations of a model that was edited often have grown.
    """

    path: str
    clamp: float | None = None
    decay: float | None = None
    norm: Tensor | None = field(default=None, repr=False, eq=False)


@frozen(kw_only=True)
class Found:
    """What the search found for one lot.

    Attributes:
        base: per site h₀ (requests, width).
        shift: per site δ (requests, width).
        nll: (requests,) mean over rows of the target's NLL a token, at the shift.
        steps: (requests,) updates made.
    """

    base: tuple[Tensor, ...]
    shift: tuple[Tensor, ...]
    nll: Tensor
    steps: Tensor


@frozen(kw_only=True)
class Lot:
    """Edits that are searched for together, before the first step.

    Attributes:
        model: in ``eval`` mode, parameters without ``requires_grad``.
        sites: where shifts are added, none below a layer that is skipped.
        parts: all rows.
        base: per site h₀ (requests, width).
        anchor: (requests, vocabulary) log-probabilities at the anchors.
        refusal: why no layer is skipped although it was asked for; else empty.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    parts: tuple[Part, ...]
    base: tuple[Tensor, ...]
    anchor: Tensor
    refusal: str


@torch.no_grad()
def opened(
    model: nn.Module,
    parts: Sequence[Part],
    sites: Sequence[Site],
    blocks: Sequence[str],
    *,
    narrow: str | None,
    verify: bool,
) -> Lot:
    """Run all layers once: what the sites write on the bare prompts, what is said at the anchors.

    Args:
        model: in ``eval`` mode.
        parts: all rows of the lot.
        sites: where shifts are added.
        blocks: that can be skipped from then on.
        narrow: path of the MLP that need compute only tokens whose logits are needed.
        verify: try on the first part whether they can.
    """
    bases: list[dict[int, Tensor]] = [{} for _ in sites]
    anchors: dict[int, Tensor] = {}
    ready: list[Part] = []
    refusal = ""
    for part in parts:
        entered, written = _entered(model, part, sites, blocks, narrow, verify and not ready)
        if entered.refusal:
            refusal, blocks, narrow = entered.refusal, (), None
        bare = part.edit[part.bare].tolist()
        for base, own in zip(bases, written, strict=True):
            base.update(zip(bare, own.to(exact(own.dtype))[part.bare], strict=True))
        logits = entered.logits[len(entered.logits) - len(part.anchor) :]
        said = torch.log_softmax(logits, dim=-1)  # (anchors, vocabulary)
        anchors |= zip(part.edit[part.anchor].tolist(), said, strict=True)
        ready.append(part.on(entered.suffix))
    every = range(len(anchors))
    return Lot(
        model=model,
        sites=tuple(sites),
        parts=tuple(ready),
        base=tuple(torch.stack([base[n] for n in every]) for base in bases),
        anchor=torch.stack([anchors[n] for n in every]),
        refusal=refusal,
    )


def searched(lot: Lot, search: Search, advance: Advance) -> Found:
    """Return the shifts with which the model says the targets.

    Args:
        lot: to search for.
        search: the settings.
        advance: told of each step of each edit.

    Raises:
        NotFiniteError: the loss of an edit is no number.
    """
    moves, decay = _prepared(lot, search)
    parts: Sequence[Part] = lot.parts
    nll = lot.base[0].new_zeros(len(lot.anchor))
    active = torch.ones_like(nll, dtype=torch.bool)
    steps = torch.zeros_like(nll, dtype=torch.long)
    for step in range(search.steps):
        last = step == search.steps - 1
        shifts = [one.shift.detach().requires_grad_() for one in moves]
        gradients = _Gradients(shifts)
        with torch.set_grad_enabled(not last):
            gradients.follow(decay(shifts))
            now = torch.zeros_like(nll)
            for part in parts:
                own, divergence = _losses(lot, part, shifts)
                gradients.follow(own + search.kl * divergence)
                now += own.detach()
        _check_finite(gradients.loss)
        nll = torch.where(active, now, nll)
        done = active & (gradients.loss < search.stop)
        active = active & ~done
        if last or not bool(active.any()):
            break
        for one, gradient in zip(moves, gradients.all(), strict=True):
            one.step(gradient, search.lr, active)
        steps += active
        advance(int(active.sum()))
        if bool(done.any()):
            parts = [kept for part in parts if (kept := part.only(active))]
    return Found(base=lot.base, shift=tuple(one.shift for one in moves), nll=nll, steps=steps)


class NotFiniteError(Exception):
    """The loss of an edit is no number.

    Attributes:
        edit: its number in the lot.
    """

    def __init__(self, edit: int) -> None:
        super().__init__(edit)
        self.edit = edit


class _Gradients:
    """The gradients of a sum of losses, taken one after the other so that one graph is alive at a time.

    That of the last one waits until it is asked for: often it is not.
    """

    def __init__(self, shifts: Sequence[Tensor]) -> None:
        self.loss = torch.zeros_like(shifts[0][:, 0])  # (requests,)
        self._shifts = shifts
        self._found = [torch.zeros_like(shift) for shift in shifts]
        self._waiting: Tensor | None = None

    def follow(self, loss: Tensor) -> None:
        """Take a further loss (requests,) in."""
        self._catch_up()
        self._waiting = loss if loss.requires_grad else None
        self.loss = self.loss + loss.detach()

    def all(self) -> list[Tensor]:
        """Return the gradient of each shift."""
        self._catch_up()
        return self._found

    def _catch_up(self) -> None:
        if self._waiting is not None:
            more = torch.autograd.grad(self._waiting.sum(), self._shifts)
            self._found = [one + other for one, other in zip(self._found, more, strict=True)]
            self._waiting = None


def _prepared(
    lot: Lot, search: Search
) -> tuple[list[Adam | Descent], Callable[[Sequence[Tensor]], Tensor]]:
    """Return what moves the shift of every site, and the loss that holds the shifts back."""
    moves: list[Adam | Descent] = []
    terms = []
    for site, base in zip(lot.sites, lot.base, strict=True):
        norm = base.norm(dim=1) if site.norm is None else site.norm.to(base)  # (requests,)
        clamp = search.clamp if site.clamp is None else site.clamp
        weight = search.decay if site.decay is None else site.decay
        radius = clamp * norm
        straight = search.direction == "gradient"
        moves.append(Descent(base, radius, norm) if straight else Adam(base, radius))
        terms.append(weight / norm**2)

    def decay(shifts: Sequence[Tensor]) -> Tensor:
        # The gradient of a norm at zero is nothing, not nan.
        each = [term * shift.norm(dim=1) for term, shift in zip(terms, shifts, strict=True)]
        return torch.stack(each).sum(0)

    return moves, decay


def _check_finite(loss: Tensor) -> None:
    """Refuse a loss (requests,) that is no number: compared with the bound it would pass for done."""
    if not bool(torch.isfinite(loss).all()):
        raise NotFiniteError(int((~torch.isfinite(loss)).nonzero()[0]))


def _entered(
    model: nn.Module,
    part: Part,
    sites: Sequence[Site],
    blocks: Sequence[str],
    narrow: str | None,
    verify: bool,
) -> tuple[Entered, list[Tensor]]:
    """Return a part after its first forward, and per site what it writes at the lookups (rows, width)."""
    written: dict[str, Tensor] = {}

    def look(path: str) -> Callable[[Tensor], Tensor]:
        def seen(hidden: Tensor) -> Tensor:
            written.setdefault(path, part.looked_up(hidden))
            return hidden

        return seen

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(replaced_output(model, site.path, look(site.path)))
        picked = part.picked if verify or not len(part.anchor) else part.anchors
        entered = enter(model, part.suffix, blocks, *picked, narrow=narrow, verify=verify)
    return entered, [written[site.path] for site in sites]


def _losses(lot: Lot, part: Part, shifts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return per edit the mean NLL of its target and the divergence at its anchor, (requests,) each."""
    with ExitStack() as stack:
        for site, shift in zip(lot.sites, shifts, strict=True):
            stack.enter_context(replaced_output(lot.model, site.path, part.adding(shift)))
        edits, head = part.edit[part.anchor], part.suffix.head
        if head is None:
            logits = run(lot.model, part.suffix, *part.picked)  # (targets + anchors, vocabulary)
            own, apart = losses_of(logits, part.target, lot.anchor[edits])
        else:
            hidden = read(lot.model, part.suffix, *part.picked)  # (targets + anchors, width)
            own, apart = losses(head, hidden, part.target, lot.anchor[edits])
    nothing = torch.zeros_like(shifts[0][:, 0])
    # Not index_add, which adds up in any order on a GPU: equal seeds must give equal deltas.
    nll = nothing.index_put((part.edit[part.row],), own * part.share, accumulate=True)
    return nll, nothing.index_put((edits,), apart, accumulate=True)
