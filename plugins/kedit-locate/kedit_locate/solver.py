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
    whitened = metric.whiten(keys)  # (requests, in_features)
    if past is not None and len(past):
        earlier = metric.whiten(past)  # (earlier keys, in_features)
        held = past.double() @ earlier.T
        held = held + penalty * torch.eye(len(past), dtype=held.dtype, device=held.device)
        cross = past.double() @ whitened.T  # (earlier keys, requests)
        whitened = whitened - torch.linalg.solve(held, cross).T @ earlier
    gram = keys.double() @ whitened.T  # (requests, requests)
    gram = gram + penalty * torch.eye(len(keys), dtype=gram.dtype, device=gram.device)
    right = torch.linalg.solve(gram, whitened)
    return Factors(residuals.T.to(keys.dtype), right.to(keys.dtype))


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
