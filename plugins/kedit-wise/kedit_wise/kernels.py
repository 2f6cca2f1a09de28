"""The side memory's products: how far each shard would move an output, and the move of the one that is chosen.

The main output always comes from the original module; what is computed here is only the difference that the
side weights make, so that where no shard is chosen an output stays the bits that it was.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_TILE = 1024  # tokens at a time

NONE = -1
"""The shard of a token that no shard speaks for."""


@torch.library.custom_op("kedit_wise::side_distance", mutates_args=())
def side_distance(inputs: Tensor, updates: Tensor) -> Tensor:
    """Return ‖Δ x‖ for every shard's update Δ and every token's input x, (shards, tokens).

    It is the distance between the side output and the main one (arXiv:2405.14768, eq. 3). Sums are float32
    (float64 where ``updates`` is).

    Args:
        inputs: (tokens, in_features) of the projection.
        updates: (shards, out_features, in_features).

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check_inputs(inputs, updates)
    return _distance(inputs, updates)


@side_distance.register_fake
def _(inputs: Tensor, updates: Tensor) -> Tensor:
    _check_inputs(inputs, updates)
    return inputs.new_empty(updates.shape[0], inputs.shape[0], dtype=_exact(updates))


@torch.library.custom_op("kedit_wise::side_match", mutates_args=())
def side_match(
    inputs: Tensor, probes: Tensor, sizes: Tensor, ends: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how well the moves of every token match those of a shard's edits, by the best of them.

    With a token's move Δ x and an edit's m, a match is ⟨Δ x, m⟩ / max(‖m‖², ‖Δ x‖²), at most 1; the probe of
    the edit is Δᵀ m / ‖m‖². Sums are float32 (float64 where ``probes`` is).

    Args:
        inputs: (tokens, in_features) of the projection.
        probes: (probes, in_features), those of one shard together, at least one each.
        sizes: (probes,) ‖m‖².
        ends: (shards,) int64, where the probes of each shard end.
        distances: (shards, tokens) ‖Δ x‖, as :func:`side_distance` returns them.

    Returns:
        best (shards, tokens), and place (shards, tokens) int64 among all probes; of equal ones the first.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check_probes(inputs, probes, sizes, ends, distances)
    return _match(inputs, probes, sizes, ends, distances)


@side_match.register_fake
def _(
    inputs: Tensor, probes: Tensor, sizes: Tensor, ends: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    _check_probes(inputs, probes, sizes, ends, distances)
    best = torch.empty_like(distances, dtype=_exact(probes))
    return best, torch.empty_like(best, dtype=torch.int64)


@torch.library.custom_op("kedit_wise::side_projection", mutates_args=())
def side_projection(inputs: Tensor, updates: Tensor, shard: Tensor, output: Tensor) -> Tensor:
    """Return outputs (tokens, out_features) moved by the update of each token's shard.

    Tokens without a shard keep the bits of their output. Gradients go to inputs and outputs.

    Args:
        inputs: (tokens, in_features) of the projection.
        updates: (shards, out_features, in_features).
        shard: (tokens,) int64, ``NONE`` for none.
        output: (tokens, out_features) of the projection.

    Raises:
        ValueError: the shapes do not belong together.
    """
    _check_outputs(inputs, updates, shard, output)
    return _projection(inputs, updates, shard, output)


@side_projection.register_fake
def _(inputs: Tensor, updates: Tensor, shard: Tensor, output: Tensor) -> Tensor:
    _check_outputs(inputs, updates, shard, output)
    return output.new_empty(output.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    given, updates, shard, _ = inputs
    ctx.save_for_backward(updates, shard)
    ctx.like = given.new_empty(0), given.shape


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor]:
    updates, shard = ctx.saved_tensors
    like, shape = ctx.like
    nothing = like.new_zeros(shape)
    back: Tensor = side_projection(gradient, updates.transpose(1, 2), shard, nothing)
    return back, None, None, gradient


side_projection.register_autograd(_backward, setup_context=_keep_for_backward)


if find_spec("triton") is not None:

    @side_distance.register_kernel("cuda")
    def _(inputs: Tensor, updates: Tensor) -> Tensor:
        # Only here: on a machine without a GPU nobody should wait for triton.
        from kedit_wise import _triton

        _check_inputs(inputs, updates)
        if torch.float64 in (inputs.dtype, updates.dtype):
            return _distance(inputs, updates)
        return _triton.side_distance(inputs, updates)

    @side_match.register_kernel("cuda")
    def _(
        inputs: Tensor, probes: Tensor, sizes: Tensor, ends: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor]:
        from kedit_wise import _triton

        _check_probes(inputs, probes, sizes, ends, distances)
        if torch.float64 in (inputs.dtype, probes.dtype, sizes.dtype):
            return _match(inputs, probes, sizes, ends, distances)
        return _triton.side_match(inputs, probes, sizes, ends, distances)

    @side_projection.register_kernel("cuda")
    def _(inputs: Tensor, updates: Tensor, shard: Tensor, output: Tensor) -> Tensor:
        from kedit_wise import _triton

        _check_outputs(inputs, updates, shard, output)
        if torch.float64 in (inputs.dtype, updates.dtype):
            return _projection(inputs, updates, shard, output)
        return _triton.side_projection(inputs, updates, shard, output)


def _exact(updates: Tensor) -> torch.dtype:
    return torch.promote_types(updates.dtype, torch.float32)


def _distance(inputs: Tensor, updates: Tensor) -> Tensor:
    exact = _exact(updates)
    stacked = updates.to(exact).transpose(1, 2)  # (shards, in_features, out_features)
    distances = updates.new_empty(updates.shape[0], inputs.shape[0], dtype=exact)
    for start in range(0, len(inputs), _TILE):
        some = slice(start, start + _TILE)
        distances[:, some] = torch.matmul(inputs[some].to(exact), stacked).norm(dim=-1)
    return distances


def _match(
    inputs: Tensor, probes: Tensor, sizes: Tensor, ends: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    exact = _exact(probes)
    given, tiny = inputs.to(exact), torch.finfo(exact).tiny
    best = torch.empty_like(distances, dtype=exact)
    place = torch.empty_like(best, dtype=torch.int64)
    start = 0
    for shard, end in enumerate(ends.tolist()):
        products = given @ probes[start:end].to(exact).T  # (tokens, probes of the shard)
        moved = distances[shard, :, None].to(exact).square().clamp(min=tiny)
        matches = products * (sizes[start:end].to(exact) / moved).clamp(max=1.0)
        best[shard], found = matches.max(dim=1)
        place[shard] = found + start
        start = end
    return best, place


def _projection(inputs: Tensor, updates: Tensor, shard: Tensor, output: Tensor) -> Tensor:
    exact = _exact(updates)
    moved = output.clone()
    for number in torch.unique(shard).tolist():
        if number == NONE:
            continue
        rows = (shard == number).nonzero()[:, 0]
        shift = inputs[rows].to(exact) @ updates[number].to(exact).T
        moved[rows] = (output[rows].to(exact) + shift).to(output.dtype)
    return moved


def _check_inputs(inputs: Tensor, updates: Tensor) -> None:
    if inputs.ndim != 2 or updates.ndim != 3 or inputs.shape[1] != updates.shape[2]:
        raise ValueError(
            f"inputs and updates are {tuple(inputs.shape)} and {tuple(updates.shape)}; (tokens, in_features) "
            "and (shards, out_features, in_features) are needed"
        )


def _check_probes(
    inputs: Tensor, probes: Tensor, sizes: Tensor, ends: Tensor, distances: Tensor
) -> None:
    shapes = [tuple(one.shape) for one in (inputs, probes, sizes, ends, distances)]
    agree = (
        inputs.ndim == probes.ndim == 2 and inputs.shape[1] == probes.shape[1] and ends.ndim == 1
    )
    if not agree or shapes[2:] != [shapes[1][:1], shapes[3], (*shapes[3], shapes[0][0])]:
        raise ValueError(
            f"inputs, probes, sizes, ends and distances are {shapes}; (tokens, in_features), (probes, "
            "in_features), (probes,), (shards,) and (shards, tokens) are needed"
        )


def _check_outputs(inputs: Tensor, updates: Tensor, shard: Tensor, output: Tensor) -> None:
    _check_inputs(inputs, updates)
    wanted = (inputs.shape[0], updates.shape[1])
    if shard.shape != inputs.shape[:1] or output.shape != wanted:
        raise ValueError(
            f"shard and output are {tuple(shard.shape)} and {tuple(output.shape)}; {wanted[:1]} and "
            f"{wanted} are needed"
        )
