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
from kedit_locate.conditioning import condition_of

_BLOCK = 4096  # keys that are summed up in float64 at a time


@frozen
class Factors:
    """An update ``left @ right``.

    Attributes:
        left: (out_features, rank).
        right: (rank, in_features).
        condition: estimate of the condition number of the system that was solved; 1 where it was a
            number.
    """

    left: Tensor
    right: Tensor
    condition: float = 1.0


@frozen(kw_only=True)
class Metric:
    """How much a change of the weights disturbs other keys.

    Attributes:
        cholesky: lower factor of C (in_features, in_features) float64, or None for C = I.
        ridge: what was added to C's diagonal, as a share of its mean, to make it definite.
        condition: estimate of the condition number of C, and so of λC.
    """

    cholesky: Tensor | None = field(repr=False)
    ridge: float = 0.0
    condition: float = 1.0

    def whiten(self, keys: Tensor) -> Tensor:
        """Return C⁻¹ k for every key, (requests, in_features) float64."""
        keys = keys.double()
        if self.cholesky is None:
            return keys
        return torch.cholesky_solve(keys.T, self.cholesky.to(keys.device)).T

    def leverage(self, keys: Tensor) -> Tensor:
        """Return kᵀC⁻¹k for every key, (keys,) float64: how far it stands out of the others.

        Over the keys that C was taken from the mean is in_features. An update that disturbs least moves a
        random key by about its leverage, so that names are disturbed more than common words.
        """
        return (keys.double() * self.whiten(keys)).sum(1)

    def units(self, keys: Tensor) -> Tensor:
        """Return keys (keys, in_features) such that their products are cosines under M = C⁻¹."""
        found = []
        for block in torch.split(keys, _BLOCK):
            sphered = block.double()  # (keys, in_features), L⁻¹k
            if self.cholesky is not None:
                factor = self.cholesky.to(keys.device)
                sphered = torch.linalg.solve_triangular(factor, sphered.T, upper=False).T
            found.append(torch.nn.functional.normalize(sphered, dim=1).to(keys.dtype))
        return torch.cat(found) if found else keys

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
            return Metric(cholesky=factor, ridge=ridge, condition=_condition(factor))
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

    Raises:
        ModelError: without a penalty, keys that depend on each other.
    """
    held = keys[:0] if past is None else past.to(keys)
    if len(held) + len(keys) > keys.shape[1]:
        return _direct(keys, residuals, metric, penalty, held)
    return _dual(keys, residuals, metric, penalty, held)


def _dual(keys: Tensor, residuals: Tensor, metric: Metric, penalty: float, held: Tensor) -> Factors:
    """Return R (λI + KᵀMK)⁻¹ KᵀM with M = C⁻¹, from systems as large as there are keys."""
    whitened, condition = metric.whiten(keys), 1.0  # (requests, in_features)
    if len(held):
        earlier = metric.whiten(held)  # (earlier keys, in_features)
        system = _System.of(held.double() @ earlier.T, penalty)
        cross = held.double() @ whitened.T  # (earlier keys, requests)
        whitened = whitened - system.solve(cross).T @ earlier
        condition = system.condition
    system = _System.of(keys.double() @ whitened.T, penalty)
    right = system.solve(whitened).to(keys.dtype)
    return Factors(residuals.T.to(keys.dtype), right, max(condition, system.condition))


def _direct(
    keys: Tensor, residuals: Tensor, metric: Metric, penalty: float, held: Tensor
) -> Factors:
    """Return R Kᵀ (λC + KₚKₚᵀ + KKᵀ)⁻¹, the same update, from one system as large as there are features.

    What it is solved for is the smaller one: the keys, or the update itself where that has fewer rows.
    """
    system = penalty * metric.moment(keys.shape[1], keys.device)
    for block in (*torch.split(held, _BLOCK), *torch.split(keys, _BLOCK)):
        every = block.double()
        system.addmm_(every.T, every)
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        raise _dependent()
    condition = _condition(factor)
    if len(keys) <= residuals.shape[1]:
        right = torch.cholesky_solve(keys.double().T, factor).T
        return Factors(residuals.T.to(keys.dtype), right.to(keys.dtype), condition)
    pulled = system.new_zeros(keys.shape[1], residuals.shape[1])  # Kᵀ R
    for some, wanted in zip(torch.split(keys, _BLOCK), torch.split(residuals, _BLOCK), strict=True):
        pulled.addmm_(some.double().T, wanted.double())
    update = torch.cholesky_solve(pulled, factor).T.to(keys.dtype)  # (out_features, in_features)
    return Factors(torch.eye(len(update), dtype=keys.dtype, device=keys.device), update, condition)


@frozen
class _System:
    """A system as large as there are keys, factorised.

    Attributes:
        factors: of it, and their pivots.
        condition: estimate of its condition number.
    """

    factors: tuple[Tensor, Tensor]
    condition: float

    @classmethod
    def of(cls, gram: Tensor, penalty: float) -> "_System":
        """Return λI + KᵀMK, factorised."""
        gram = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        *factors, failed = torch.linalg.lu_factor_ex(gram)
        if int(failed):
            raise _dependent()
        made = cls((factors[0], factors[1]), 1.0)
        return cls(made.factors, condition_of(gram.__matmul__, made.solve, gram))

    def solve(self, wanted: Tensor) -> Tensor:
        """Return the solution for (keys, columns)."""
        solved: Tensor = torch.linalg.lu_solve(*self.factors, wanted)
        return solved


def _condition(factor: Tensor) -> float:
    """Return an estimate of the condition number of a matrix with this Cholesky factor."""
    return condition_of(
        lambda block: factor @ (factor.T @ block),
        lambda block: torch.cholesky_solve(block, factor),
        factor,
    )


def _dependent() -> ModelError:
    return ModelError(
        "the keys of the edits",
        "depend on each other, so no update meets what all of them ask for; a penalty above 0 weighs them "
        "against each other",
    )


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
