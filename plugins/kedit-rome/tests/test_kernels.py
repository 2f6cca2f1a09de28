"""``per_row_rank_one``: its torch body, its Triton kernel under the interpreter, and its cubins."""

import pytest
import torch

from kedit_core.testing.kernels import (
    CAPABILITIES,
    ROUNDING,
    TYPES,
    compile_ahead,
    interpreter,
    run_alone,
)
from kedit_rome.kernels import per_row_rank_one

SIZES = {  # rows, tokens, in_features, out_features; a block of the kernel is 4 tokens, 512 features
    "one of everything": (1, 1, 1, 1),
    "one row": (1, 6, 8, 5),
    "one column read": (3, 2, 1, 9),
    "one column written": (3, 2, 9, 1),
    "one token": (3, 1, 7, 9),
    "just a block": (2, 4, 512, 512),
    "one past a block": (2, 5, 513, 513),
    "no rows": (0, 3, 4, 5),
    "no tokens": (2, 0, 4, 5),
    "nothing read": (2, 3, 0, 5),
    "nothing written": (2, 3, 4, 0),
}


@pytest.fixture(scope="module")
def interpreted():
    from kedit_rome import _triton

    with interpreter() as call:
        yield lambda *given: call(_triton.per_row_rank_one, *given)


@pytest.fixture(params=["torch body", "interpreted kernel"])
def implementation(request):
    name = request.param
    return per_row_rank_one if name == "torch body" else request.getfixturevalue("interpreted")


def arguments(rows, tokens, in_features, out_features, dtype=torch.float32):
    """Return y, x in ``dtype`` and u, v as a delta holds them."""
    generator = torch.Generator().manual_seed(rows + 10 * tokens + 100 * in_features)
    shapes = (
        (rows, tokens, out_features),
        (rows, tokens, in_features),
        (rows, in_features),
        (rows, out_features),
    )
    y, x, u, v = (torch.randn(shape, generator=generator).double() for shape in shapes)
    factors = torch.promote_types(dtype, torch.float32)
    return y.to(dtype), x.to(dtype), u.to(factors), v.to(factors)


def expected(y, x, u, v):
    """Return the same in float64, row by row from the definition."""
    rows = zip(y.double(), x.double(), u.double(), v.double(), strict=True)
    moved = [y_i + torch.outer(x_i @ u_i, v_i) for y_i, x_i, u_i, v_i in rows]
    return torch.stack(moved) if moved else y.double()


def assert_close(found, given):
    wanted, rounding = expected(*given), ROUNDING[given[0].dtype]
    assert found.dtype == given[0].dtype
    assert found.is_contiguous()
    # The interpreter truncates where a GPU rounds, and both add up in another order than this.
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=rounding * scale)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_row_gets_its_own_update_whatever_the_sizes(implementation, sizes):
    given = arguments(*sizes)
    assert_close(implementation(*given), given)


@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_each_row_gets_its_own_update_in_every_dtype(implementation, dtype):
    given = arguments(3, 5, 40, 24, dtype)
    assert_close(implementation(*given), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_sums_are_taken_in_float32_from_half_precision_too(implementation, dtype):
    ones, y = torch.ones(1, 1, 2049, dtype=dtype), torch.full((1, 1, 1), -2048.0, dtype=dtype)
    # Neither half precision holds 2049: rounded on the way, the difference would be 0.
    assert implementation(y, ones, torch.ones(1, 2049), torch.ones(1, 1)).item() == 1


def test_factors_in_the_dtype_of_the_model_will_do(implementation):
    given = tuple(one.bfloat16() for one in arguments(2, 3, 20, 10))
    assert_close(implementation(*given), given)


def test_tensors_that_are_not_contiguous_are_read_where_they_lie(implementation):
    y, x, u, v = arguments(3, 4, 10, 6)
    given = (
        torch.stack([y, -y], dim=-1)[..., 0],  # every second feature
        x.transpose(0, 1).contiguous().transpose(0, 1),  # tokens before rows
        u.t().contiguous().t(),
        v[:1].expand(3, -1),  # one left factor for all rows, stride 0
    )
    assert not any(one.is_contiguous() for one in given)
    assert_close(implementation(*given), given)


def test_the_tensors_passed_in_are_left_alone(implementation):
    given = arguments(2, 3, 8, 5)
    before = [one.clone() for one in given]
    found = implementation(*given)
    assert all(map(torch.equal, given, before))
    assert all(found.data_ptr() != one.data_ptr() for one in given)


@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
@pytest.mark.parametrize("sizes", [(3, 5, 7, 4), (1, 1, 1, 1), (0, 3, 4, 5)])
def test_torch_accepts_the_operator(sizes, dtype):
    torch.library.opcheck(per_row_rank_one, arguments(*sizes, dtype))


def test_torch_accepts_the_operator_on_a_transposed_output():
    y, x, u, v = arguments(3, 5, 7, 4)
    torch.library.opcheck(
        per_row_rank_one, (y.transpose(0, 1).contiguous().transpose(0, 1), x, u, v)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"y": (2, 5)},
        {"x": (2, 4, 7)},
        {"x": (3, 5, 7)},
        {"u": (1, 7)},
        {"u": (2, 6)},
        {"v": (1, 4)},
        {"v": (2, 1)},
    ],
    ids=str,
)
def test_shapes_that_torch_would_broadcast_are_refused(wrong):
    shapes = {"y": (2, 5, 4), "x": (2, 5, 7), "u": (2, 7), "v": (2, 4)} | wrong
    with pytest.raises(ValueError, match="are needed"):
        per_row_rank_one(*(torch.zeros(shape) for shape in shapes.values()))


WITHOUT_TRITON = """
import sys
import kedit_rome
assert not {"torch", "triton"} & sys.modules.keys(), "the plugin imports what it does not need yet"
sys.modules["triton"] = None  # what is not installed
import torch
from kedit_rome.kernels import per_row_rank_one
y, x, u, v = torch.zeros(1, 1, 2), torch.ones(1, 1, 3), torch.ones(1, 3), torch.ones(1, 2)
assert per_row_rank_one(y, x, u, v).tolist() == [[[3.0, 3.0]]]
"""


def test_everything_works_without_triton_and_the_plugin_loads_without_torch():
    assert run_alone(WITHOUT_TRITON) == ""


# Ahead of time: a missing Triton is a failure here, not a reason to skip.

INTEGERS = ("tokens", "in_features", "out_features")
FEATURE_STRIDES = ("y_feature", "x_feature", "u_feature", "v_feature")
OTHER_STRIDES = ("y_row", "y_token", "x_row", "x_token", "u_row", "v_row")


def compiled(dtype, capability, ones):
    """Compile the kernel as a launch would, arguments in ``ones`` known to be 1."""
    from kedit_rome import _triton

    name, factors = TYPES[dtype], TYPES[torch.promote_types(dtype, torch.float32)]
    pointers = dict.fromkeys(("out", "y", "x"), name) | dict.fromkeys("uv", factors)
    known = {
        "ACCUMULATOR": _triton.ACCUMULATORS[torch.promote_types(dtype, torch.float32)],
        "TOKENS": _triton.TOKENS,
        "FEATURES": _triton.FEATURES,
        **dict.fromkeys(ones, 1),
    }
    return compile_ahead(_triton.add_rank_one, pointers, known, capability)


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_the_kernel_compiles_ahead_of_time(dtype, capability, record_property):
    found = compiled(dtype, capability, FEATURE_STRIDES)
    assert found.cubin[:4] == b"\x7fELF"
    assert f".target sm_{capability}" in found.ptx
    assert found.shared <= 48 * 1024
    record_property("compiled", ("per_row_rank_one", TYPES[dtype], f"sm_{capability}"))


@pytest.mark.parametrize(
    "ones", [(), (*INTEGERS, *FEATURE_STRIDES, *OTHER_STRIDES)], ids=["any strides", "all sizes 1"]
)
def test_the_kernel_compiles_for_unusual_sizes_and_strides(ones):
    assert compiled(torch.bfloat16, 90, ones).cubin[:4] == b"\x7fELF"
