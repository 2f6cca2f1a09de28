"""The engine's operators: their torch bodies, their Triton kernels under the interpreter, their cubins."""

import pytest
import torch

from kedit_core.testing.kernels import CAPABILITIES, ROUNDING, TYPES, compile_ahead, run_alone
from kedit_locate.kernels import adam_clamp_step, syrk_accumulate

READ = {dtype: name for dtype, name in TYPES.items() if dtype != torch.float64}
STATES = {dtype: TYPES[dtype] for dtype in (torch.float32, torch.float64)}

GRAMS = {  # rows, features; a tile of the kernel is 64 features and 16 rows in float32
    "one of everything": (1, 1),
    "one row": (1, 9),
    "one column": (7, 1),
    "just a tile": (16, 64),
    "one past a tile": (17, 65),
    "many tiles": (40, 330),
    "no rows": (0, 5),
    "no features": (3, 0),
}
STATE_SHAPES = {  # edits, width
    "one of everything": (1, 1),
    "one edit": (1, 130),
    "one column": (5, 1),
    "a power of two": (3, 256),
    "one past it": (3, 257),
    "no edits": (0, 4),
    "no width": (3, 0),
}


@pytest.fixture(params=["torch body", "interpreted kernel"])
def implementation(request):
    """Return what runs an operator: its torch body, or its Triton kernel under the interpreter."""
    if request.param == "torch body":
        return lambda operator, *given: operator(*given)
    from kedit_locate import _triton

    call = request.getfixturevalue("interpreted")
    found = {syrk_accumulate: _triton.syrk_accumulate, adam_clamp_step: _triton.adam_clamp_step}
    return lambda operator, *given: call(found[operator], *given)


# --- syrk_accumulate


def to_sum(rows, features, dtype=torch.float32, total=torch.float32):
    """Return a sum that has begun, rows, and which of them count; the others are no numbers."""
    generator = torch.Generator().manual_seed(rows + 100 * features)
    keep = torch.rand(rows, generator=generator) < 0.7
    keep[:1] = True
    x = torch.randn(rows, features, generator=generator)
    x[~keep] = torch.nan
    begun = torch.randn(features, features, generator=generator)
    return begun.to(total), x.to(dtype), keep


def summed(total, x, keep):
    """Return the same in float64 from the definition, a row at a time."""
    added = sum((torch.outer(row, row) for row in x[keep].double()), torch.zeros(total.shape))
    return total.double() + torch.tril(added)


def assert_summed(implementation, given):
    wanted = summed(*given)
    implementation(syrk_accumulate, *given)
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(given[0].double(), wanted, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("sizes", GRAMS.values(), ids=GRAMS)
def test_the_lower_triangle_grows_by_the_kept_rows_whatever_the_sizes(implementation, sizes):
    assert_summed(implementation, to_sum(*sizes))


@pytest.mark.parametrize("total", STATES, ids=STATES.values())
@pytest.mark.parametrize("dtype", READ, ids=READ.values())
def test_the_lower_triangle_grows_in_every_dtype(implementation, dtype, total):
    assert_summed(implementation, to_sum(70, 140, dtype, total))


def test_where_no_row_is_kept_nothing_changes(implementation):
    total, x, keep = to_sum(20, 6)
    before = total.clone()
    implementation(syrk_accumulate, total, torch.full_like(x, torch.nan), torch.zeros_like(keep))
    assert torch.equal(total, before)


def test_what_lies_above_the_diagonal_is_left_alone(implementation):
    total, x, keep = to_sum(20, 70)
    above = torch.ones(70, 70).triu(1).bool()
    total[above] = torch.nan
    implementation(syrk_accumulate, total, x, keep)
    assert total[above].isnan().all()
    assert total[~above].isfinite().all()


def test_rows_and_sums_that_are_not_contiguous_are_read_where_they_lie(implementation):
    total, x, keep = to_sum(30, 70)
    given = (
        total.t().contiguous().t(),
        torch.stack([x, -x], dim=-1)[..., 0].t().contiguous().t(),
        torch.stack([keep, ~keep], dim=-1)[:, 0],
    )
    assert not any(one.is_contiguous() for one in given)
    assert_summed(implementation, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_summed_in_float32(implementation, dtype):
    total = torch.zeros(1, 1)
    ones, keep = torch.ones(2049, 1, dtype=dtype), torch.ones(2049, dtype=torch.bool)
    implementation(syrk_accumulate, total, ones, keep)
    assert total.item() == 2049  # which neither half precision holds


def test_many_small_sums_reach_a_float64_total_unrounded(implementation):
    total = torch.full((1, 1), 2.0**30, dtype=torch.float64)
    implementation(syrk_accumulate, total, torch.ones(1, 1), torch.ones(1, dtype=torch.bool))
    assert total.item() == 2**30 + 1  # float32 has no such number


def test_a_float64_model_is_summed_in_float64():
    total, x, keep = to_sum(9, 5, torch.float64, torch.float64)
    wanted = summed(total, x, keep)
    syrk_accumulate(total, x, keep)
    torch.testing.assert_close(total, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": torch.zeros(3, 4)},
        {"total": torch.zeros(1, 1)},
        {"total": torch.zeros(3, 3, dtype=torch.bfloat16)},
        {"x": torch.zeros(1, 2, 3)},
        {"x": torch.zeros(2, 3, dtype=torch.int64)},
        {"keep": torch.ones(1, dtype=torch.bool)},
        {"keep": torch.ones(2)},
    ],
    ids=lambda wrong: ", ".join(f"{k} {v.dtype} {tuple(v.shape)}" for k, v in wrong.items()),
)
def test_sums_that_make_no_sense_are_refused(wrong):
    given = {
        "total": torch.zeros(3, 3),
        "x": torch.zeros(2, 3),
        "keep": torch.ones(2, dtype=torch.bool),
    } | wrong
    with pytest.raises(ValueError, match="needed"):
        syrk_accumulate(*given.values())


# --- adam_clamp_step


def state_of(edits, width, dtype=torch.float32):
    """Return shift, mean and square as they are before the first step."""
    return tuple(torch.zeros(edits, width, dtype=dtype) for _ in range(3))


def gradients(edits, width, dtype=torch.float32, steps=6):
    generator = torch.Generator().manual_seed(edits + 10 * width)
    return torch.randn(steps, edits, width, generator=generator, dtype=torch.float64).to(dtype)


def radii(edits, width, dtype):
    """Return radii of which about every second one is reached within a few steps."""
    return torch.tensor([(0.2, 50.0)[edit % 2] for edit in range(edits)], dtype=dtype) * width**0.5


def activity(edits, step):
    """Return which edits move: the third of every three stops early, and the first begins late."""
    stops = torch.arange(edits) % 3
    return (stops != 2) | (torch.tensor(step) < 2)


def plain_steps(slopes, radius, lr):
    """Return the shifts that the formulas of Adam give, with the projection after each step."""
    shift, mean, square = state_of(*slopes.shape[1:], slopes.dtype)
    for step, gradient in enumerate(slopes):
        active = activity(len(shift), step)
        mean = 0.9 * mean + (1 - 0.9) * gradient
        square = 0.999 * square + (1 - 0.999) * gradient**2
        unbiased = mean / (1 - 0.9 ** (step + 1))
        spread = square / (1 - 0.999 ** (step + 1))
        moved = shift - lr * unbiased / (spread.sqrt() + 1e-8)
        norm = moved.norm(dim=1).clamp(min=torch.finfo(moved.dtype).tiny)
        moved = moved * (radius / norm).clamp(max=1)[:, None]
        shift = torch.where(active[:, None], moved, shift)
    return shift


def own_steps(implementation, slopes, radius, lr):
    shift, mean, square = state = state_of(*slopes.shape[1:], slopes.dtype)
    for step, gradient in enumerate(slopes):
        active = activity(len(shift), step)
        implementation(adam_clamp_step, shift, mean, square, gradient, active, radius, lr, step + 1)
    return state[0]


@pytest.mark.parametrize("dtype", STATES, ids=STATES.values())
@pytest.mark.parametrize("shape", STATE_SHAPES.values(), ids=STATE_SHAPES)
def test_steps_are_those_of_plain_torch_whatever_the_sizes(implementation, shape, dtype):
    slopes, radius = gradients(*shape, dtype), radii(*shape, dtype)
    found = own_steps(implementation, slopes, radius, 0.3)
    wanted = plain_steps(slopes, radius, 0.3)
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(found, wanted, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", STATES, ids=STATES.values())
def test_on_cpu_not_one_bit_differs_from_plain_torch(dtype):
    slopes, radius = gradients(5, 40, dtype), radii(5, 40, dtype)
    found = own_steps(lambda operator, *given: operator(*given), slopes, radius, 0.3)
    assert torch.equal(found, plain_steps(slopes, radius, 0.3))


def test_far_from_its_radius_an_edit_moves_as_with_the_optimiser_of_torch(implementation):
    slopes = gradients(2, 30, torch.float64)
    shift, mean, square = state_of(2, 30, torch.float64)
    theirs = torch.zeros(2, 30, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=0.3)
    far, all_active = torch.full((2,), torch.inf, dtype=torch.float64), torch.ones(2).bool()
    for step, gradient in enumerate(slopes):
        theirs.grad = gradient.clone()
        adam.step()
        given = (shift, mean, square, gradient, all_active, far)
        implementation(adam_clamp_step, *given, 0.3, step + 1)
    torch.testing.assert_close(shift, theirs.detach(), rtol=1e-11, atol=1e-11)


def test_what_is_done_does_not_move_not_even_by_momentum(implementation):
    slopes, far = gradients(2, 8), torch.full((2,), 9.0)
    shift, mean, square = state_of(2, 8)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    implementation(adam_clamp_step, shift, mean, square, slopes[0], both, far, 0.3, 1)
    before = shift.clone()
    implementation(adam_clamp_step, shift, mean, square, 0 * slopes[0], first, far, 0.3, 2)
    assert torch.equal(shift[1], before[1])
    assert not torch.isclose(shift[0], before[0]).any()


def test_no_shift_leaves_its_radius_and_one_of_nothing_stays_nothing(implementation):
    radius = torch.tensor([0.5, 0.0, 1.0, 0.0])
    shift, mean, square = state_of(4, 20)
    slopes = gradients(4, 20)
    slopes[:, 2:] = 0
    for step, gradient in enumerate(slopes):
        given = (shift, mean, square, gradient, torch.ones(4).bool(), radius)
        implementation(adam_clamp_step, *given, 5.0, step + 1)
        assert (shift.norm(dim=1) <= radius * (1 + 1e-6)).all()
    torch.testing.assert_close(shift[0].norm(), radius[0])
    assert not shift[1:].any()


def test_state_that_is_not_contiguous_is_stepped_where_it_lies(implementation):
    slopes, radius = gradients(3, 20), torch.tensor([0.5, 9.0, 9.0, 9.0, 0.5])[::2]
    active = torch.tensor([True, False, True, False, False])[::2]
    own = [one.t().contiguous().t() for one in state_of(3, 20)]
    plain = state_of(3, 20)
    for step, gradient in enumerate(slopes):
        strided = torch.stack([gradient, -gradient], dim=-1)[..., 0]
        implementation(adam_clamp_step, *own, strided, active, radius, 0.3, step + 1)
        adam_clamp_step(*plain, gradient, active.contiguous(), radius.contiguous(), 0.3, step + 1)
    for found, wanted in zip(own, plain, strict=True):
        torch.testing.assert_close(found.contiguous(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift": torch.zeros(2)},
        {"mean": torch.zeros(1, 3)},
        {"gradient": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"active": torch.ones(2)},
        {"active": torch.ones(3, dtype=torch.bool)},
        {"radius": torch.ones(2, 1)},
        {"radius": torch.ones(2, dtype=torch.float64)},
        {"count": 0},
    ],
    ids=", ".join,
)
def test_steps_that_make_no_sense_are_refused(wrong):
    given = {name: torch.zeros(2, 3) for name in ("shift", "mean", "square", "gradient")}
    given |= {"active": torch.ones(2, dtype=torch.bool), "radius": torch.ones(2)}
    with pytest.raises(ValueError, match="needed"):
        adam_clamp_step(*(given | {"lr": 0.3, "count": 1} | wrong).values())


# --- both


@pytest.mark.parametrize("sizes", [(20, 9), (1, 1), (0, 4)])
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_torch_accepts_the_sum(sizes, dtype):
    total, x, keep = to_sum(*sizes, dtype)
    torch.library.opcheck(syrk_accumulate, (total, x.nan_to_num(), keep))


@pytest.mark.parametrize("shape", [(3, 9), (1, 1), (0, 4)])
@pytest.mark.parametrize("dtype", STATES, ids=STATES.values())
def test_torch_accepts_the_step(shape, dtype):
    (slopes,) = gradients(*shape, dtype, steps=1)
    given = (slopes, activity(shape[0], 0), radii(*shape, dtype), 0.3, 1)
    torch.library.opcheck(adam_clamp_step, (*state_of(*shape, dtype), *given))


WITHOUT_TRITON = """
import sys
import kedit_locate
assert not {"torch", "triton"} & sys.modules.keys(), "the plugin imports what it does not need yet"
sys.modules["triton"] = None  # what is not installed
import torch
from kedit_locate.injection_kernels import two_site_inject
from kedit_locate.kernels import adam_clamp_step, syrk_accumulate
from kedit_locate.writing_kernels import low_rank_write
total, one = torch.zeros(1, 1), torch.ones(1, 1)
syrk_accumulate(total, one, torch.tensor([True]))
assert total.item() == 1
low_rank_write(total, one, one, one)
assert total.item() == 2
adam_clamp_step(total, 0 * one, 0 * one, one, torch.tensor([True]), torch.ones(1), 0.5, 1)
assert total.item() == 1
none = torch.tensor([0])
assert two_site_inject(one[None], one[None], one, one, none, none)[0].item() == 2
"""


def test_everything_works_without_triton_and_the_plugin_loads_without_torch():
    assert run_alone(WITHOUT_TRITON) == ""


# Ahead of time: a missing Triton is a failure here, not a reason to skip.


def compiled_sum(dtype, total, capability, ones):
    from kedit_locate import _triton

    tiles = _triton.SINGLE if dtype == torch.float32 else _triton.HALF
    pointers = {"total": TYPES[total], "x": TYPES[dtype], "keep": "u8"}
    known = {"OPERAND": _triton.LANGUAGE[dtype], "BLOCK": tiles.block, "ROWS": tiles.rows}
    return compile_ahead(
        _triton.add_gram,
        pointers,
        known | dict.fromkeys(ones, 1),
        capability,
        aligned=("features", "total_row", "x_row"),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
    )


def compiled_step(dtype, width, capability, ones):
    from kedit_locate import _triton

    rows = ("shift", "mean", "square", "gradient")
    features = 1 << (width - 1).bit_length()
    known = {
        "FIRST": 0.9,
        "SECOND": 0.999,
        "EPS": 1e-8,
        "TINY": torch.finfo(dtype).tiny,
        "STATE": _triton.LANGUAGE[dtype],
        "FEATURES": features,
    }
    return compile_ahead(
        _triton.step_and_project,
        dict.fromkeys((*rows, "radius"), TYPES[dtype]) | {"active": "u8"},
        known | dict.fromkeys(ones, 1),
        capability,
        aligned=("width", *(f"{row}_edit" for row in rows)),
        options={"num_warps": _triton.warps_for(features)},
    )


SUM_STRIDES = ("total_column", "x_feature", "keep_row")
STATE_STRIDES = (
    *(f"{row}_feature" for row in ("shift", "mean", "square", "gradient")),
    *("active_edit", "radius_edit"),
)


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", READ, ids=READ.values())
def test_the_sum_compiles_ahead_of_time(dtype, capability, record_property):
    for total in STATES:
        found = compiled_sum(dtype, total, capability, SUM_STRIDES)
        assert found.cubin[:4] == b"\x7fELF"
        assert f".target sm_{capability}" in found.ptx
        assert found.shared <= 99 * 1024
    record_property("compiled", ("syrk_accumulate", TYPES[dtype], f"sm_{capability}"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_multiplied_by_tensor_cores_and_float32_is_not(dtype):
    half = compiled_sum(dtype, torch.float32, 90, SUM_STRIDES).ptx
    assert f"f32.{TYPES[dtype].replace('fp', 'f')}" in half
    assert "mma" in half
    assert "mma" not in compiled_sum(torch.float32, torch.float32, 90, SUM_STRIDES).ptx


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", STATES, ids=STATES.values())
def test_the_step_compiles_ahead_of_time(dtype, capability, record_property):
    for width in (768, 4096, 12288):  # GPT-2, GPT-J and Llama-3-8B, GPT-3
        found = compiled_step(dtype, width, capability, STATE_STRIDES)
        assert found.cubin[:4] == b"\x7fELF"
        assert f".target sm_{capability}" in found.ptx
        assert found.shared <= 48 * 1024
        # Learning rate and shares come whole: in float32, which is Triton's default, a float64 state
        # would be none.
        assert found.ptx.count(".param .f64") == 3
    record_property("compiled", ("adam_clamp_step", TYPES[dtype], f"sm_{capability}"))


@pytest.mark.parametrize(
    ("compiled", "ones"),
    [
        (lambda ones: compiled_sum(torch.bfloat16, torch.float32, 90, ones), ()),
        (
            lambda ones: compiled_sum(torch.float32, torch.float32, 90, ones),
            ("rows", "features", "total_row", "x_row", *SUM_STRIDES),
        ),
        (lambda ones: compiled_step(torch.float32, 1000, 90, ones), ()),
        (lambda ones: compiled_step(torch.float32, 1, 90, ones), ("width", *STATE_STRIDES)),
    ],
    ids=["sum, any strides", "sum, all 1", "step, any strides", "step, all 1"],
)
def test_both_compile_for_unusual_sizes_and_strides(compiled, ones):
    assert compiled(ones).cubin[:4] == b"\x7fELF"
