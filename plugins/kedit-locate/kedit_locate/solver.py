"""The one linear step of the family: the update that meets the residuals and disturbs other keys least.

With the second moment C of the keys, K (in_features, requests) and residuals R (out_features,
requests),

    Δ = R (I + Kᵀ M K)⁻¹ Kᵀ M,    M = (λ C)⁻¹

minimises ‖(W + Δ) K - V‖² + λ tr(Δ C Δᵀ); for λ → 0 it meets the residuals exactly. Here requests
are rows, as everywhere in code: keys (requests, in_features), residuals (requests, out_features).
Only a Cholesky factor of C is needed, in float64: with cond(C) near 1e8 a float32 solve is noise.
"""

import torch
from attrs import field, frozen
from torch import Tensor

from kedit_core.errors import ModelError


@frozen
class Factors:
    """An update ``left @ right``.

    Attributes:
        left: (out_features, rank).
        right: (rank, in_features).
    """

    left: Tensor
    right: Tensor


@frozen(kw_only=True)
class Metric:
    """How much a change of the weights disturbs other keys.

    Attributes:
        cholesky: lower factor of C (in_features, in_features) float64, or None for C = I.
        ridge: what was added to C's diagonal, as a share of its mean, to make it definite.
    """

    cholesky: Tensor | None = field(repr=False)
    ridge: float = 0.0

    def whiten(self, keys: Tensor) -> Tensor:
        """Return C⁻¹ k for every key, (requests, in_features) float64."""
        keys = keys.double()
        if self.cholesky is None:
            return keys
        return torch.cholesky_solve(keys.T, self.cholesky.to(keys.device)).T

    def moment(self, in_features: int, device: torch.device) -> Tensor:
        """Return C, (in_features, in_features) float64."""
        if self.cholesky is None:
            return torch.eye(in_features, dtype=torch.float64, device=device)
        factor = self.cholesky.to(device)
        return factor @ factor.T


def factorise(moment: Tensor) -> Metric:
    """Return the metric of a second moment (in_features, in_features).

    When C is not positive definite (fewer tokens than features, dead features) the smallest of
    1e-8, 1e-7 … of its mean diagonal that makes it so is added, and recorded.

    Raises:
        ModelError: C is not finite or is zero (a ValueError).
    """
    moment = moment.double()
    scale = float(moment.diagonal().mean())
    if not (0 < scale < float("inf")):
        raise ModelError("the second moment of the keys", "is zero or not finite")
    for ridge in (0.0, *(10.0**power for power in range(-8, 1))):
        lifted = moment + ridge * scale * torch.eye(
            len(moment), dtype=moment.dtype, device=moment.device
        )
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if not int(failed):
            return Metric(cholesky=factor, ridge=ridge)
    raise ModelError("the second moment of the keys", "cannot be factorised")


def ridge_update(
    keys: Tensor,
    residuals: Tensor,
    metric: Metric,
    penalty: float,
    past: Tensor | None = None,
) -> Factors:
    """Return the update that trades residuals against disturbance (MEMIT, eq. 14 of arXiv:2210.07229).

    With ``past`` keys Kₚ the metric is M = (λ C + Kₚ Kₚᵀ)⁻¹: what earlier edits wrote at them is worth
    keeping as much as what this one writes. With fixed keys and absolute values a stream of such
    updates is then the one batch of all its edits (recursive least squares).

    Args:
        keys: (requests, in_features).
        residuals: (requests, out_features).
        metric: of the layer.
        penalty: λ, at least 0; 0 meets the residuals exactly and needs independent keys.
        past: (earlier keys, in_features), or None.
    """
    held = keys[:0] if past is None else past.to(keys)
    if len(held) + len(keys) > keys.shape[1]:
        right = _direct(keys, metric, penalty, held)
    else:
        right = _dual(keys, metric, penalty, held)
    return Factors(residuals.T.to(keys.dtype), right.to(keys.dtype))


def _dual(keys: Tensor, metric: Metric, penalty: float, held: Tensor) -> Tensor:
    """Return (I + KᵀMK)⁻¹KᵀM, (requests, in_features), from systems as large as there are keys."""
    whitened = metric.whiten(keys)  # (requests, in_features)
    if len(held):
        earlier = metric.whiten(held)  # (earlier keys, in_features)
        gram = _lifted(held.double() @ earlier.T, penalty)
        cross = held.double() @ whitened.T  # (earlier keys, requests)
        whitened = whitened - torch.linalg.solve(gram, cross).T @ earlier
    gram = _lifted(keys.double() @ whitened.T, penalty)
    right: Tensor = torch.linalg.solve(gram, whitened)
    return right


def _direct(keys: Tensor, metric: Metric, penalty: float, held: Tensor) -> Tensor:
    """Return Kᵀ(λC + KₚKₚᵀ + KKᵀ)⁻¹, the same matrix, from one system as large as there are features."""
    every = torch.cat([held, keys]).double()  # (all keys, in_features)
    system = penalty * metric.moment(keys.shape[1], keys.device) + every.T @ every
    factor: Tensor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(keys.double().T, factor).T


def _lifted(gram: Tensor, penalty: float) -> Tensor:
    return gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def shared_shift(keys: Tensor, shift: Tensor, metric: Metric) -> Factors:
    """Return the update that writes one and the same shift at several keys and disturbs least.

    With K (in_features, n) the keys, Δ = δ 1ᵀ (KᵀC⁻¹K)⁺ KᵀC⁻¹, of rank one whatever n is.

    Args:
        keys: (n, in_features), where W k + shift is met exactly.
        shift: (out_features,).
        metric: of the layer.
    """
    whitened = metric.whiten(keys)  # (n, in_features)
    gram = keys.double() @ whitened.T  # (n, n)
    share = torch.linalg.pinv(gram, hermitian=True, rtol=1e-6).sum(1)  # (n,)
    return Factors(shift[:, None].to(keys.dtype), (share @ whitened)[None].to(keys.dtype))


def rank_one(
    key: Tensor, residual: Tensor, metric: Metric, *, along: Tensor | None = None
) -> Factors:
    """Return the update with (W + Δ) k = W k + r that disturbs least: r (C⁻¹k)ᵀ / (kᵀC⁻¹k).

    Args:
        key: (in_features,), where the residual is met exactly.
        residual: (out_features,).
        metric: of the layer.
        along: the key whose C⁻¹k gives the direction; by default ``key``. The original ROME differs
            here.
    """
    direction = metric.whiten((key if along is None else along)[None])[0]  # (in_features,)
    right = direction / (key.double() @ direction)
    return Factors(residual[:, None].to(key.dtype), right[None].to(key.dtype))
