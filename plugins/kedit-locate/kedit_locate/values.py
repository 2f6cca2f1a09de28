"""Values: what the edited projection should write for the model to say the new target.

For each edit a shift δ is added to what one site (an MLP's down-projection, or a whole block)
writes at the subject's last token, and found by Adam on

    mean_i NLL(target | row i) + κ KL(P_δ ‖ P_0 at the anchor) + w ‖δ‖ / ‖h₀‖²,    ‖δ‖ ≤ c ‖h₀‖

where h₀ is what the site writes on the bare prompt (Meng et al., 2022, arXiv:2202.05262; the
weights of the terms as in the authors' code). Whatever stands before the subject's last token never
changes, so it is read once into a KV cache and every step runs from that token on.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_core.progress import Progress
from kedit_locate.capture import replaced_output
from kedit_locate.config import Search
from kedit_locate.rows import EditRows, Row, padded

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
    """

    shift: Tensor = field(repr=False)
    base: Tensor = field(repr=False)
    nll: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def value(self) -> Tensor:
        """Return h₀ + δ, (requests, width)."""
        return self.base + self.shift


def search_values(
    model: nn.Module, edits: Sequence[EditRows], site: str, search: Search, progress: Progress
) -> Values:
    """Return the value of every edit, all searched for at once; together or alone they come out the same.

    Args:
        model: in ``eval`` mode, parameters without ``requires_grad``.
        edits: rows of each edit.
        site: path of the module that the shift is added to.
        search: the settings.
        progress: told of each step.

    Raises:
        ModelError: the loss of an edit is no number, for example because the model overflows.
    """
    suffix = _read_prefixes(model, edits)
    base, anchor = _unshifted(model, suffix, site)  # (requests, width), (requests, vocabulary)
    radius = search.clamp * base.norm(dim=1)  # (requests,)
    adam = _Adam(torch.zeros_like(base))
    active = torch.ones(len(edits), dtype=torch.bool, device=base.device)
    steps = torch.zeros(len(edits), dtype=torch.long, device=base.device)
    with progress.task("searching values", search.steps, "steps") as advance:
        for step in range(search.steps):
            shift = adam.shift.detach().requires_grad_()
            nll, divergence = _losses(model, suffix, site, shift, anchor)
            # The gradient of a norm at zero is nothing, not nan.
            decay = search.decay * shift.norm(dim=1) / base.norm(dim=1) ** 2
            loss = nll + search.kl * divergence + decay  # (requests,)
            _check_finite(loss.detach())
            active &= loss.detach() >= search.stop
            if step == search.steps - 1 or not bool(active.any()):
                break
            (gradient,) = torch.autograd.grad(loss.sum(), shift)
            adam.step(gradient, search.lr, radius, active)
            steps += active
            advance(1)
    return Values(
        shift=adam.shift, base=base, nll=tuple(nll.detach().tolist()), steps=tuple(steps.tolist())
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


@frozen(kw_only=True)
class _Suffix:
    """The rows of all edits from their lookup token on, and the cache of what stands before it.

    Attributes:
        ids: (rows, tokens); the lookup token is the first.
        mask: (rows, prefix tokens + tokens).
        positions: (rows, tokens).
        cache: KV of the prefixes, or None when no row has any.
        edit: (rows,) which edit a row belongs to.
        bare: (requests,) row of each edit's bare prompt.
        anchors: (requests,) row of each edit's anchor.
        wanted: (positions,) positions whose logits are needed, ascending.
        row, place, target: (targets,) where each target token is predicted, ``place`` within
            ``wanted``.
        share: (targets,) weight of each token's NLL in its edit's loss.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    cache: Any
    edit: Tensor
    bare: Tensor
    anchors: Tensor
    wanted: Tensor
    row: Tensor
    place: Tensor
    target: Tensor
    share: Tensor


@torch.no_grad()
def _read_prefixes(model: nn.Module, edits: Sequence[EditRows]) -> _Suffix:
    device = next(model.parameters()).device
    weighed = [_distinct(edit) for edit in edits]
    rows = [row for own in weighed for row in own]
    owner = [number for number, own in enumerate(weighed) for _ in own]
    prefix_ids, prefix_mask = padded([row.ids[: row.lookup] for row in rows], device)
    ids, mask = padded([row.ids[row.lookup :] for row in rows], device)
    lookup = torch.tensor([row.lookup for row in rows], device=device)
    weights = [weight for own in weighed for weight in own.values()]
    row_of, place, target, share = _targets(rows, weights)
    wanted = sorted({*place, 0})
    ends = list(accumulate(len(own) for own in weighed))
    return _Suffix(
        ids=ids,
        mask=torch.cat([prefix_mask, mask], dim=1),
        positions=lookup[:, None] + torch.arange(ids.shape[1], device=device),
        cache=_cache_of(model, prefix_ids),
        edit=torch.tensor(owner, device=device),
        bare=torch.tensor([0, *ends[:-1]], device=device),
        anchors=torch.tensor([end - 1 for end in ends], device=device),
        wanted=torch.tensor(wanted, device=device),
        row=torch.tensor(row_of, device=device),
        place=torch.tensor([wanted.index(one) for one in place], device=device),
        target=torch.tensor(target, device=device),
        share=torch.tensor(share, dtype=_exact(next(model.parameters()).dtype), device=device),
    )


def _distinct(edit: EditRows) -> dict[Row, float]:
    """Return each different row once with its share of the edit's loss, the anchor last with none.

    A model that repeats itself gives equal prefixes; reading them once is the same sum.
    """
    counts = Counter(edit.rewrites)
    shares = {row: count / len(edit.rewrites) for row, count in counts.items()}
    return {**shares, edit.anchor: 0.0}


def _targets(
    rows: Sequence[Row], weights: Sequence[float]
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Return for every target token its row, its position in the suffix, its id and its share of the loss."""
    found: list[tuple[int, int, int, float]] = []
    for number, row in enumerate(rows):
        first = len(row.ids) - len(row.target) - row.lookup
        share = weights[number] / max(len(row.target), 1)
        found += [(number, first + t, token, share) for t, token in enumerate(row.target)]
    row_of, place, target, shares = zip(*found, strict=True)
    return list(row_of), list(place), list(target), list(shares)


def _cache_of(model: nn.Module, prefix_ids: Tensor) -> Any:
    """Return the KV cache of right-padded prefixes; pads are masked later, and by causality change nothing."""
    if prefix_ids.shape[1] == 0:
        return None
    positions = torch.arange(prefix_ids.shape[1], device=prefix_ids.device).expand_as(prefix_ids)
    options = _keeping(model, torch.zeros(1, dtype=torch.long, device=prefix_ids.device))
    output = model(
        input_ids=prefix_ids,
        attention_mask=torch.ones_like(prefix_ids),
        position_ids=positions,
        use_cache=True,
        **options,
    )
    return output.past_key_values


def _keeping(model: nn.Module, wanted: Tensor) -> dict[str, Tensor]:
    """Return the argument that limits logits to some positions, for models that know it."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": wanted} if known else {}


def _forward(model: nn.Module, suffix: _Suffix) -> Tensor:
    """Run the suffixes and return the wanted logits, (rows, wanted, vocabulary) in float32 or more."""
    options = _keeping(model, suffix.wanted)
    output = model(
        input_ids=suffix.ids,
        attention_mask=suffix.mask,
        position_ids=suffix.positions,
        past_key_values=_borrowed(suffix.cache),
        use_cache=suffix.cache is not None,
        **options,
    )
    logits: Tensor = output.logits if options else output.logits[:, suffix.wanted]
    return logits.to(_exact(logits.dtype))


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return what losses and shifts are kept in: float32, or float64 in a float64 model."""
    return torch.promote_types(dtype, torch.float32)


def _borrowed(cache: Any) -> Any:
    """Return a cache that can be written to without changing the one it shares its tensors with."""
    if cache is None or not hasattr(cache, "layers"):
        return copy.deepcopy(cache)
    lent = copy.copy(cache)
    lent.layers = [copy.copy(layer) for layer in cache.layers]
    return lent


@torch.no_grad()
def _unshifted(model: nn.Module, suffix: _Suffix, site: str) -> tuple[Tensor, Tensor]:
    """Return what the site writes on the bare prompts, and the log-probabilities at the anchors."""
    written: list[Tensor] = []

    def look(hidden: Tensor) -> Tensor:
        written.append(hidden.reshape(*suffix.ids.shape, -1)[:, 0])
        return hidden

    with replaced_output(model, site, look):
        logits = _forward(model, suffix)
    base = written[0][suffix.bare]  # (requests, width)
    base = base.to(_exact(base.dtype))
    return base, torch.log_softmax(logits[suffix.anchors, 0], dim=-1)


def _losses(
    model: nn.Module, suffix: _Suffix, site: str, shift: Tensor, anchor: Tensor
) -> tuple[Tensor, Tensor]:
    """Return per edit the mean NLL of its target and the divergence at its anchor, (requests,) each."""

    def shifted(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(*suffix.ids.shape, -1)  # (rows, tokens, width)
        first = flat[:, :1] + shift[suffix.edit, None].to(flat.dtype)
        return torch.cat([first, flat[:, 1:]], dim=1).reshape(hidden.shape)

    with replaced_output(model, site, shifted):
        logits = _forward(model, suffix)  # (rows, wanted, vocabulary)
    said = torch.log_softmax(logits[suffix.row, suffix.place], dim=-1)  # (targets, vocabulary)
    own = said.gather(1, suffix.target[:, None])[:, 0]
    share = suffix.share.to(own.dtype)
    nll = torch.zeros(len(shift), dtype=own.dtype, device=own.device)
    nll = nll.index_add(0, suffix.edit[suffix.row], -own * share)
    now = torch.log_softmax(logits[suffix.anchors, 0], dim=-1)  # (requests, vocabulary)
    return nll, (now.exp() * (now - anchor)).sum(-1)
