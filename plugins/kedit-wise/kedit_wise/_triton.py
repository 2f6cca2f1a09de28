"""The Triton side of ``kernels.py``; importing it imports triton.

Every load is upcast before anything is computed with it: float32 sums on a GPU, and under the interpreter,
whose bfloat16 arithmetic is garbage, what makes it usable.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens, outputs (or probes) and inputs of a tile.
TOKENS, OUTPUTS, INPUTS, WARPS = 16, 64, 32, 4


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def squares_of_slice(  # type: ignore[no-untyped-def]
    inputs, updates, squares, tokens, outputs, width,
    input_row, input_column, update_shard, update_row, update_column,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):
    # fmt: on
    """Sum up the squares of one slice of the outputs for one block of tokens and one shard."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    output = tl.program_id(1).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    shard = tl.program_id(2).to(tl.int64)
    moves = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for first in range(0, width, INPUTS):
        part = first + tl.arange(0, INPUTS).to(tl.int64)
        given = tl.load(
            inputs + token[:, None] * input_row + part[None, :] * input_column,
            mask=(token < tokens)[:, None] & (part < width)[None, :],
            other=0.0,
        )
        weight = tl.load(
            updates + shard * update_shard + part[:, None] * update_column
            + output[None, :] * update_row,
            mask=(part < width)[:, None] & (output < outputs)[None, :],
            other=0.0,
        )
        moves = tl.dot(given.to(tl.float32), weight.to(tl.float32), moves, input_precision="ieee")
    out = (shard * tl.num_programs(1) + tl.program_id(1)) * tokens + token
    tl.store(squares + out, tl.sum(moves * moves, axis=1), mask=token < tokens)


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def moved_block(  # type: ignore[no-untyped-def]
    inputs, updates, chosen, output, moved, tokens, outputs, width, shards,
    input_row, input_column, update_shard, update_row, update_column, output_row, output_column,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):
    # fmt: on
    """Move one block of outputs by the update of each token's shard; those without one stay as they are."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    place = tl.program_id(1).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = (token < tokens)[:, None] & (place < outputs)[None, :]
    shard = tl.load(chosen + token, mask=token < tokens, other=-1)
    shift = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for number in range(shards):
        own = shard == number
        if tl.max(own.to(tl.int32), axis=0) > 0:
            for first in range(0, width, INPUTS):
                part = first + tl.arange(0, INPUTS).to(tl.int64)
                own_update = tl.zeros((INPUTS,), dtype=tl.int64) + number
                given = tl.load(
                    inputs + token[:, None] * input_row + part[None, :] * input_column,
                    mask=own[:, None] & (part < width)[None, :],
                    other=0.0,
                )
                weight = tl.load(
                    updates + own_update[:, None] * update_shard + part[:, None] * update_column
                    + place[None, :] * update_row,
                    mask=(part < width)[:, None] & (place < outputs)[None, :],
                    other=0.0,
                )
                shift = tl.dot(
                    given.to(tl.float32), weight.to(tl.float32), shift, input_precision="ieee"
                )
    main = tl.load(
        output + token[:, None] * output_row + place[None, :] * output_column,
        mask=inside,
        other=0.0,
    )
    other = (main.to(tl.float32) + shift).to(main.dtype)
    result = tl.where((shard >= 0)[:, None], other, main)
    tl.store(moved + token[:, None] * outputs + place[None, :], result, mask=inside)


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def best_of_shard(  # type: ignore[no-untyped-def]
    inputs, probes, sizes, ends, distances, best, place, tokens, width,
    input_row, input_column, probe_row, probe_column,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, TINY: tl.constexpr,
):
    # fmt: on
    """Find the best match of one shard for one block of tokens."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    shard = tl.program_id(1)
    in_token = token < tokens
    begin = tl.load(ends + shard - 1, mask=shard > 0, other=0)
    end = tl.load(ends + shard)
    apart = tl.load(distances + shard.to(tl.int64) * tokens + token, mask=in_token, other=0.0)
    apart = apart.to(tl.float32)
    moved = tl.maximum(apart * apart, TINY)
    top = tl.full((TOKENS,), float("-inf"), dtype=tl.float32)
    where = tl.zeros((TOKENS,), dtype=tl.int64) + begin
    for start in range(begin, end, OUTPUTS):
        probe = start + tl.arange(0, OUTPUTS).to(tl.int64)
        in_probe = probe < end
        products = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
        for first in range(0, width, INPUTS):
            part = first + tl.arange(0, INPUTS).to(tl.int64)
            given = tl.load(
                inputs + token[:, None] * input_row + part[None, :] * input_column,
                mask=in_token[:, None] & (part < width)[None, :],
                other=0.0,
            )
            held = tl.load(
                probes + part[:, None] * probe_column + probe[None, :] * probe_row,
                mask=(part < width)[:, None] & in_probe[None, :],
                other=0.0,
            )
            products = tl.dot(
                given.to(tl.float32), held.to(tl.float32), products, input_precision="ieee"
            )
        size = tl.load(sizes + probe, mask=in_probe, other=0.0).to(tl.float32)
        matches = products * tl.minimum(size[None, :] / moved[:, None], 1.0)
        matches = tl.where(in_probe[None, :], matches, float("-inf"))
        found = tl.max(matches, axis=1)
        nearest = tl.argmax(matches, axis=1).to(tl.int64) + start
        better = found > top
        where = tl.where(better, nearest, where)
        top = tl.where(better, found, top)
    out = shard.to(tl.int64) * tokens + token
    tl.store(best + out, top, mask=in_token)
    tl.store(place + out, where, mask=in_token)


def side_distance(inputs: Tensor, updates: Tensor) -> Tensor:
    """Return ‖Δ x‖ for every shard and token, as the operator in ``kernels.py`` does."""
    tokens, (shards, outputs, width) = len(inputs), updates.shape
    slices = triton.cdiv(outputs, OUTPUTS)
    squares = torch.empty(shards, slices, tokens, dtype=torch.float32, device=inputs.device)
    if tokens and shards:
        # Triton launches on the current device, and the tensors may live on another one.
        with torch.cuda.device_of(inputs):  # type: ignore[no-untyped-call]
            squares_of_slice[(triton.cdiv(tokens, TOKENS), slices, shards)](
                *(inputs, updates, squares, tokens, outputs, width),
                *(*inputs.stride(), *updates.stride()),
                TOKENS=TOKENS,
                OUTPUTS=OUTPUTS,
                INPUTS=INPUTS,
                num_warps=WARPS,
            )
    return squares.sum(1).sqrt()


def side_match(
    inputs: Tensor, probes: Tensor, sizes: Tensor, ends: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the best match of every shard and token, as the operator in ``kernels.py`` does."""
    tokens, shards = len(inputs), len(ends)
    best = torch.empty(shards, tokens, dtype=torch.float32, device=inputs.device)
    place = torch.empty(shards, tokens, dtype=torch.int64, device=inputs.device)
    if tokens and shards:
        with torch.cuda.device_of(inputs):  # type: ignore[no-untyped-call]
            best_of_shard[(triton.cdiv(tokens, TOKENS), shards)](
                *(inputs, probes, sizes.contiguous(), ends.contiguous()),
                *(distances.contiguous(), best, place, tokens, inputs.shape[1]),
                *(*inputs.stride(), *probes.stride()),
                TOKENS=TOKENS,
                OUTPUTS=OUTPUTS,
                INPUTS=INPUTS,
                TINY=torch.finfo(torch.float32).tiny,
                num_warps=WARPS,
            )
    return best, place


def side_projection(inputs: Tensor, updates: Tensor, shard: Tensor, output: Tensor) -> Tensor:
    """Return outputs moved by the update of each token's shard, as the operator in ``kernels.py`` does."""
    tokens, (shards, outputs, width) = len(inputs), updates.shape
    moved = torch.empty(output.shape, dtype=output.dtype, device=output.device)
    if tokens:
        with torch.cuda.device_of(inputs):  # type: ignore[no-untyped-call]
            moved_block[(triton.cdiv(tokens, TOKENS), triton.cdiv(outputs, OUTPUTS))](
                *(inputs, updates, shard.contiguous(), output, moved),
                *(tokens, outputs, width, shards),
                *(*inputs.stride(), *updates.stride(), *output.stride()),
                TOKENS=TOKENS,
                OUTPUTS=OUTPUTS,
                INPUTS=INPUTS,
                num_warps=WARPS,
            )
    return moved
