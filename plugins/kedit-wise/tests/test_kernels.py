"""The side memory's products: their torch bodies, their Triton kernels under the interpreter, their cubins."""

import pytest
import torch

from kedit_core.testing.kernels import CAPABILITIES, ROUNDING, TYPES, compile_ahead, run_alone
from kedit_wise.kernels import NONE, side_distance, side_match, side_projection

READ = {dtype: name for dtype, name in TYPES.items() if dtype != torch.float64}
SIZES = {  # tokens, shards, outputs, inputs; a tile of the kernels is 16 tokens, 64 outputs and 32 inputs
    "one of everything": (1, 1, 1, 1),
    "one token": (1, 3, 70, 40),
    "one shard": (5, 1, 33, 33),
    "one output": (4, 2, 1, 9),
    "just a tile": (16, 2, 64, 32),
    "one past a tile": (17, 2, 65, 33),
    "no tokens": (0, 2, 8, 8),
}


@pytest.fixture(params=["torch body", "interpreted kernel"])
def side(request):
    """Return what computes an operator by name: its torch body, or its Triton kernel interpreted."""
    operators = {"distance": side_distance, "match": side_match, "projection": side_projection}
    if request.param == "torch body":
        return lambda name, *given: operators[name](*given)
    from kedit_wise import _triton

    call = request.getfixturevalue("interpreted")
    return lambda name, *given: call(getattr(_triton, f"side_{name}"), *given)


def arguments(tokens, shards, outputs, inputs, dtype=torch.float32):
    chance = torch.Generator().manual_seed(tokens + 10 * shards + outputs)
    given = torch.randn(tokens, inputs, generator=chance).to(dtype)
    updates = torch.randn(shards, outputs, inputs, generator=chance).to(dtype)
    shard = torch.randint(NONE, shards, (tokens,), generator=chance)
    output = torch.randn(tokens, outputs, generator=chance).to(dtype)
    return given, updates, shard, output


def assert_close(found, wanted, dtype=torch.float32):
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2 * ROUNDING[dtype] * scale)


def assert_distances(side, given, updates):
    found = side("distance", given, updates)
    assert found.dtype == torch.float32
    moves = torch.einsum("soi,ti->sto", updates.double(), given.double())
    assert_close(found, moves.norm(dim=-1))


def assert_moved(side, given, updates, shard, output):
    found = side("projection", given, updates, shard, output)
    assert found.dtype == output.dtype
    outside = shard == NONE
    assert torch.equal(found[outside], output[outside])
    own = updates.double()[shard.clamp(min=0)]  # (tokens, outputs, inputs)
    wanted = output.double() + torch.einsum("toi,ti->to", own, given.double())
    assert_close(found[~outside], wanted[~outside], output.dtype)


def probes(tokens, shards, each, inputs, dtype=torch.float32):
    chance = torch.Generator().manual_seed(tokens + each)
    given = torch.randn(tokens, inputs, generator=chance).to(dtype)
    found = torch.randn(shards * each, inputs, generator=chance).to(dtype)
    sizes = torch.rand(shards * each, generator=chance) + 0.1
    ends = torch.arange(1, shards + 1) * each
    return given, found, sizes, ends, torch.rand(shards, tokens, generator=chance) * 2


def assert_matched(side, given, held, sizes, ends, distances):
    best, place = side("match", given, held, sizes, ends, distances)
    shards, each = len(ends), len(held) // len(ends)
    products = (given.double() @ held.double().T).reshape(len(given), shards, each)
    less = sizes.double().reshape(shards, each) / distances.double().T[..., None].square()
    matches = (products * less.clamp(max=1)).transpose(0, 1)  # (shards, tokens, each)
    wanted = matches.amax(-1) if matches.numel() else matches.sum(-1)
    assert_close(best, wanted)
    begin = (ends - each)[:, None]
    assert bool(((place >= begin) & (place < ends[:, None])).all())
    if matches.numel():
        assert_close(best, matches.gather(-1, (place - begin)[..., None])[..., 0])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_operator_holds_whatever_the_sizes(side, sizes):
    given = arguments(*sizes)
    assert_distances(side, *given[:2])
    assert_moved(side, *given)
    assert_matched(side, *probes(*sizes))


@pytest.mark.parametrize("dtype", READ, ids=READ.values())
def test_every_operator_holds_in_every_dtype(side, dtype):
    given = arguments(18, 3, 40, 70, dtype)
    assert_distances(side, *given[:2])
    assert_moved(side, *given)
    assert_matched(side, *probes(18, 3, 70, 40, dtype))


def test_tensors_may_lie_in_any_order(side):
    given, updates, shard, output = arguments(34, 4, 40, 72)
    given, updates = given[::2, ::2], updates.transpose(1, 2).contiguous().transpose(1, 2)[..., ::2]
    assert_distances(side, given, updates)
    assert_moved(side, given, updates, shard[::2], output.T.contiguous().T[::2])
    read, held, *others, distances = probes(34, 2, 20, 72)
    held = held.T.contiguous().T[:, ::2]
    assert_matched(side, read[::2, ::2], held, *others, distances[:, ::2])


def test_of_equal_probes_the_first_is_found(side):
    given, held, sizes, ends, distances = probes(3, 1, 4, 8)
    given, held = (8 * given).round(), (8 * held).round()  # no sum is rounded
    first = side("match", given, held, sizes, ends, distances)[1]
    both = side("match", given, held.repeat(40, 1), sizes.repeat(40), 40 * ends, distances)[1]
    assert torch.equal(first, both)


@pytest.mark.parametrize("sizes", [(3, 2, 5, 4), (0, 1, 2, 3)], ids=str)
def test_torch_accepts_the_operators(sizes):
    given, updates, shard, output = arguments(*sizes)
    torch.library.opcheck(side_distance, (given, updates))
    torch.library.opcheck(side_projection, (given, updates, shard, output))
    torch.library.opcheck(side_match, probes(*sizes))


def test_gradients_go_through_the_side_to_inputs_and_outputs():
    given, updates, shard, output = arguments(5, 2, 4, 3)
    given, updates, output = (one.double() for one in (given, updates, output))
    given.requires_grad_()
    output.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: side_projection(x, updates, shard, y), (given, output)
    )


def test_shapes_that_do_not_belong_together_are_refused():
    given, updates, shard, output = arguments(5, 2, 4, 3)
    for call in (
        lambda: side_distance(given[:, :2], updates),
        lambda: side_distance(given, updates[0]),
        lambda: side_projection(given, updates, shard[:2], output),
        lambda: side_projection(given, updates, shard, output[:, :2]),
        lambda: side_match(given, updates[0], torch.ones(3), torch.tensor([4]), torch.ones(1, 5)),
    ):
        with pytest.raises(ValueError, match="are needed"):
            call()


def test_without_triton_the_operators_work_all_the_same():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from kedit_wise.kernels import side_distance\n"
        "assert side_distance(torch.ones(1, 4), torch.ones(1, 1, 4)).item() == 4"
    )
    assert run_alone(program) == ""


# Ahead of time: a missing Triton is a failure here, not a reason to skip.

TILE = ("TOKENS", "OUTPUTS", "INPUTS")
INPUTS = ("tokens", "outputs", "width", "input_row", "update_shard", "update_row")


def compiled(kernel, pointers, known, capability, aligned):
    from kedit_wise import _triton

    tile = {name: getattr(_triton, name) for name in TILE}
    found = compile_ahead(
        getattr(_triton, kernel),
        pointers,
        tile | known,
        capability,
        aligned=aligned,
        options={"num_warps": _triton.WARPS},
    )
    assert found.cubin[:4] == b"\x7fELF"
    assert f".target sm_{capability}" in found.ptx
    assert found.shared <= 99 * 1024
    assert "mma" not in found.ptx  # tensor cores would round the products


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", READ, ids=READ.values())
def test_the_kernels_compile_ahead_of_time(dtype, capability, record_property):
    own = TYPES[dtype]
    columns = {"input_column": 1, "update_column": 1}
    read = {"inputs": own, "updates": own}
    compiled("squares_of_slice", {**read, "squares": "fp32"}, columns, capability, INPUTS)
    record_property("compiled", ("side_distance", own, f"sm_{capability}"))
    written = {**read, "chosen": "i64", "output": own, "moved": own}
    known = {**columns, "output_column": 1}
    compiled("moved_block", written, known, capability, (*INPUTS, "output_row"))
    record_property("compiled", ("side_projection", own, f"sm_{capability}"))
    held = {"inputs": own, "probes": own, "sizes": "fp32", "ends": "i64", "distances": "fp32"}
    compiled(
        "best_of_shard",
        {**held, "best": "fp32", "place": "i64"},
        {"input_column": 1, "probe_column": 1, "TINY": torch.finfo(torch.float32).tiny},
        capability,
        ("tokens", "width", "input_row", "probe_row"),
    )
    record_property("compiled", ("side_match", own, f"sm_{capability}"))
