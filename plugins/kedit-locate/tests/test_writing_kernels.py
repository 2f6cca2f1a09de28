"""``low_rank_write``: the bits of core's sums on CPU, and its Triton kernel under the interpreter."""

import pytest
import torch

from kedit_core import Delta, LowRank, Weights, layout_of
from kedit_core.sums import Sums
from kedit_core.testing.kernels import CAPABILITIES, ROUNDING, TYPES, compile_ahead
from kedit_locate.writing_kernels import low_rank_write

WRITTEN = {dtype: name for dtype, name in TYPES.items() if dtype != torch.float64}

SIZES = {  # out_features, in_features, ranks; a tile of the kernel is 64 x 128, 16 ranks
    "one of everything": (1, 1, 1),
    "one row": (1, 130, 3),
    "one column": (70, 1, 3),
    "one rank": (20, 30, 1),
    "just a tile": (64, 128, 16),
    "one past a tile": (65, 129, 17),
    "no ranks": (5, 6, 0),
    "no rows": (0, 6, 2),
    "no columns": (5, 0, 2),
}


@pytest.fixture(params=["torch body", "interpreted kernel"])
def write(request):
    """Return the operator: its torch body, or its Triton kernel under the interpreter."""
    if request.param == "torch body":
        return low_rank_write
    from kedit_locate import _triton_writing

    call = request.getfixturevalue("interpreted")
    return lambda *given: call(_triton_writing.low_rank_write, *given)


def arguments(out_features, in_features, ranks, dtype=torch.float32, *, conv1d=False):
    """Return out, which holds no numbers, base, left and right; transposed as in a Conv1D if asked."""
    generator = torch.Generator().manual_seed(out_features + 10 * in_features + 100 * ranks)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factors = torch.promote_types(dtype, torch.float32)
    base = drawn(out_features, in_features).to(dtype)
    left, right = drawn(out_features, ranks).to(factors), drawn(ranks, in_features).to(factors)
    base = base.t().contiguous().t() if conv1d else base
    return torch.full_like(base, torch.nan), base, left, right


def assert_written(write, given):
    out, base, left, right = given
    write(out, base, left, right)
    wanted, rounding = base.double() + left.double() @ right.double(), ROUNDING[out.dtype]
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(out.double(), wanted, rtol=rounding, atol=rounding * scale)


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_whole_weight_is_filled_whatever_the_sizes(write, sizes, conv1d):
    assert_written(write, arguments(*sizes, conv1d=conv1d))


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", WRITTEN, ids=WRITTEN.values())
def test_the_whole_weight_is_filled_in_every_dtype(write, dtype, conv1d):
    assert_written(write, arguments(70, 140, 20, dtype, conv1d=conv1d))


def test_a_float64_weight_is_summed_in_float64():
    assert_written(low_rank_write, arguments(9, 8, 3, torch.float64))


def test_tensors_that_are_not_contiguous_are_read_and_written_where_they_lie(write):
    _, base, left, right = arguments(20, 30, 5)
    room = torch.zeros(20, 60)
    given = (
        room[:, ::2],
        torch.stack([base, -base], dim=-1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0],
        left.t().contiguous().t(),
        right[:1].expand(5, -1),  # stride 0
    )
    assert not any(one.is_contiguous() for one in given)
    assert_written(write, given)
    assert not room[:, 1::2].any()


def test_what_lies_beside_the_factors_is_never_read(write):
    out, base, left, right = arguments(20, 30, 5)
    wide, tall = torch.full((20, 40), torch.nan), torch.full((40, 30), torch.nan)
    wide[:, :5], tall[:5] = left, right
    assert_written(write, (out, base, wide[:, :5], tall[:5]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_sum_is_taken_in_float32_and_cast_once(write, dtype):
    left, right = torch.ones(1, 2049), torch.ones(2049, 1)
    base = torch.full((1, 1), -2048.0, dtype=dtype)
    out = torch.empty_like(base)
    # Neither half precision holds 2049: rounded on the way, the difference would be 0.
    write(out, base, left, right)
    assert out.item() == 1


def test_what_is_read_is_left_alone(write):
    out, *read = arguments(9, 20, 4)
    before = [one.clone() for one in read]
    write(out, *read)
    assert all(map(torch.equal, read, before))


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
@pytest.mark.parametrize("ranks", [1, 3, 100, 512, 513, 1100])
def test_on_cpu_not_one_bit_differs_from_the_sum_that_exports_merge_to(ranks, dtype, conv1d):
    out, base, left, right = arguments(40, 70, ranks, dtype, conv1d=conv1d)
    low_rank_write(out, base, left, right)
    # In force as two changes, whose border is none of the sum's.
    half = (ranks + 1) // 2
    parts = [
        LowRank(weight="w", left=left[:, start : start + half], right=right[start : start + half])
        for start in range(0, ranks, half)
    ]
    wanted = Sums().of("w", base, parts, [])
    assert torch.equal(out, wanted.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "llama"])  # Conv1D and Linear modules
def test_a_model_edited_through_it_has_the_bits_of_one_edited_without(tiny, family, dtype):
    def edited(**how):
        model = tiny(family, dtype=dtype)
        weights, down = Weights(model), layout_of(model).down_of(1)
        generator = torch.Generator().manual_seed(7)
        factors = torch.promote_types(dtype, torch.float32)
        for ranks in (3, 20):
            left = torch.randn(down.out_features, ranks, generator=generator).to(factors)
            right = torch.randn(ranks, down.in_features, generator=generator).to(factors)
            part = LowRank(weight=down.weight, left=left, right=right)
            weights.add(Delta(method="any", requests=(), parts=(part,)), **how)
        return model.get_parameter(down.weight)

    assert torch.equal(edited(write=low_rank_write), edited())


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("sizes", [(9, 20, 4), (1, 1, 1), (0, 6, 2)])
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_torch_accepts_the_operator(sizes, dtype, conv1d):
    _, *read = arguments(*sizes, dtype, conv1d=conv1d)
    torch.library.opcheck(low_rank_write, (torch.zeros_like(read[0]), *read))


@pytest.mark.parametrize(
    "wrong",
    [
        {"out": (4,)},
        {"out": (1, 5)},
        {"base": (4, 1)},
        {"left": (1, 2)},
        {"left": (4, 1)},
        {"right": (2, 1)},
        {"right": (5, 2)},
    ],
    ids=str,
)
def test_shapes_that_torch_would_broadcast_are_refused(wrong):
    shapes = {"out": (4, 5), "base": (4, 5), "left": (4, 2), "right": (2, 5)} | wrong
    with pytest.raises(ValueError, match="are needed"):
        low_rank_write(*(torch.zeros(shape) for shape in shapes.values()))


# Ahead of time: a missing Triton is a failure here, not a reason to skip.


def compiled(dtype, capability, ones):
    """Compile the kernel as a launch would, arguments in ``ones`` known to be 1."""
    from kedit_locate import _triton_writing

    sides = ("out_row", "out_column", "base_row", "base_column", "left_row", "right_rank")
    return compile_ahead(
        _triton_writing.write_sum,
        dict.fromkeys(("out", "base"), TYPES[dtype]) | dict.fromkeys(("left", "right"), "fp32"),
        {
            "ROWS": _triton_writing.ROWS,
            "COLUMNS": _triton_writing.COLUMNS,
            "RANKS": _triton_writing.RANKS,
            **dict.fromkeys(ones, 1),
        },
        capability,
        aligned=("rows", "columns", *sides),
        options={"num_warps": _triton_writing.WARPS},
    )


FACTORS = ("left_rank", "right_column")
ORIENTATIONS = {
    "Linear": ("out_column", "base_column", *FACTORS),
    "Conv1D": ("out_row", "base_row", *FACTORS),
}


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", WRITTEN, ids=WRITTEN.values())
def test_the_kernel_compiles_ahead_of_time_in_both_orientations(dtype, capability, record_property):
    for ones in ORIENTATIONS.values():
        found = compiled(dtype, capability, ones)
        assert found.cubin[:4] == b"\x7fELF"
        assert f".target sm_{capability}" in found.ptx
        assert found.shared <= 99 * 1024
        # Factors are float32, and tensor cores would round them.
        assert "mma" not in found.ptx
    record_property("compiled", ("low_rank_write", TYPES[dtype], f"sm_{capability}"))


@pytest.mark.parametrize(
    "ones",
    [(), ("rows", "columns", "ranks", *ORIENTATIONS["Linear"], *ORIENTATIONS["Conv1D"])],
    ids=["any strides", "all sizes 1"],
)
def test_the_kernel_compiles_for_unusual_sizes_and_strides(ones):
    assert compiled(torch.bfloat16, 90, ones).cubin[:4] == b"\x7fELF"
