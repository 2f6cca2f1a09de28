"""``two_site_inject``: its torch body and gradient, its Triton kernel under the interpreter, its cubins."""

import pytest
import torch

from kedit_core.testing.kernels import CAPABILITIES, ROUNDING, TYPES, compile_ahead
from kedit_locate.injection_kernels import two_site_inject

SIZES = {  # rows, tokens, width, edits; a block of the kernel is one token, 1024 features
    "one of everything": (1, 1, 1, 1),
    "one row": (1, 6, 8, 2),
    "one column": (3, 2, 1, 2),
    "one token": (3, 1, 7, 3),
    "just a block": (2, 3, 1024, 2),
    "one past a block": (2, 3, 1025, 2),
    "more edits than rows": (2, 3, 5, 4),
    "no rows": (0, 3, 4, 2),
    "no width": (2, 3, 0, 2),
}


@pytest.fixture(params=["torch body", "interpreted kernel"])
def inject(request):
    """Return the operator: its torch body, or its Triton kernel under the interpreter."""
    if request.param == "torch body":
        return two_site_inject
    from kedit_locate import _triton_injection

    call = request.getfixturevalue("interpreted")
    return lambda *given: call(_triton_injection.two_site_inject, *given)


def arguments(rows, tokens, width, edits, dtype=torch.float32):
    """Return two sites in ``dtype``, two shifts as an optimiser holds them, and where they go."""
    generator = torch.Generator().manual_seed(rows + 10 * tokens + 100 * width)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    exact = torch.promote_types(dtype, torch.float32)
    sites = [drawn(rows, tokens, width).to(dtype) for _ in range(2)]
    shifts = [drawn(edits, width).to(exact) for _ in range(2)]
    edit = torch.randint(edits, (rows,), generator=generator)
    return *sites, *shifts, edit, torch.randint(tokens, (rows,), generator=generator)


def expected(hidden, shift, rows, at):
    """Return the same in float64, row by row from the definition."""
    wanted = hidden.double()
    for row, (edit, token) in enumerate(zip(rows.tolist(), at.tolist(), strict=True)):
        wanted[row, token] += shift[edit].double()
    return wanted


def assert_injected(inject, given):
    first, second, shift_a, shift_b, rows, at = given
    wanted = expected(first.clone(), shift_a, rows, at), expected(second.clone(), shift_b, rows, at)
    for found, own, hidden in zip(inject(*given), wanted, given[:2], strict=True):
        assert found.dtype == hidden.dtype
        assert found.is_contiguous()
        assert found.data_ptr() != hidden.data_ptr() or not found.numel()
        rounding = 2 * ROUNDING[hidden.dtype]  # of the shift, and of the sum
        torch.testing.assert_close(found.double(), own, rtol=rounding, atol=4 * rounding)
        others = torch.arange(hidden.shape[1]) != at[:, None]  # (rows, tokens)
        assert torch.equal(found[others], hidden[others])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_row_gets_its_own_shifts_at_its_token_whatever_the_sizes(inject, sizes):
    assert_injected(inject, arguments(*sizes))


@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_each_row_gets_its_own_shifts_in_every_dtype(inject, dtype):
    assert_injected(inject, arguments(5, 4, 40, 3, dtype))


def test_no_tokens_are_no_work(inject):
    sites, shifts, none = torch.zeros(0, 0, 4), torch.zeros(2, 4), torch.zeros(0, dtype=torch.long)
    assert [one.shape for one in inject(sites, sites, shifts, shifts, none, none)] == [
        (0, 0, 4)
    ] * 2


def test_a_negative_zero_elsewhere_stays_negative(inject):
    zeros, shift = torch.full((1, 2, 3), -0.0), torch.ones(1, 3)
    found = inject(zeros, zeros.clone(), shift, shift, torch.tensor([0]), torch.tensor([1]))
    assert all(site[0, 0].signbit().all() for site in found)


def test_tensors_that_are_not_contiguous_are_read_where_they_lie(inject):
    first, second, shift_a, shift_b, rows, at = arguments(3, 4, 10, 3)
    given = (
        torch.stack([first, -first], dim=-1)[..., 0],
        second.transpose(0, 1).contiguous().transpose(0, 1),  # tokens before rows
        shift_a.t().contiguous().t(),
        shift_b[:1].expand(3, -1),  # one shift for all edits, stride 0
        torch.stack([rows, rows], dim=-1)[:, 0],
        torch.stack([at, at], dim=-1)[:, 0],
    )
    assert not any(one.is_contiguous() for one in given)
    assert_injected(inject, given)


def test_the_tensors_passed_in_are_left_alone(inject):
    given = arguments(3, 4, 10, 2)
    before = [one.clone() for one in given]
    inject(*given)
    assert all(map(torch.equal, given, before))


def test_its_gradient_is_that_of_the_sum():
    *differentiable, rows, at = arguments(4, 3, 5, 2, torch.float64)
    for one in differentiable:
        one.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: two_site_inject(*given, rows, at), tuple(differentiable)
    )


@pytest.mark.parametrize("site", [0, 1])
def test_one_site_alone_may_be_differentiated(site):
    first, second, *shifts, rows, at = arguments(4, 3, 5, 2)
    for shift in shifts:
        shift.requires_grad_()
    out = two_site_inject(first, second, *shifts, rows, at)
    found = torch.autograd.grad(out[site].sum(), shifts)
    counts = rows.bincount(minlength=2).float()[:, None].expand(-1, 5)
    assert torch.equal(found[site], counts)
    assert not found[1 - site].any()


def test_gradients_of_half_precision_are_added_up_in_float32():
    sites, shift = torch.zeros(600, 1, 1, dtype=torch.bfloat16), torch.zeros(1, 1)
    shift.requires_grad_()
    rows = torch.zeros(600, dtype=torch.long)
    first, _ = two_site_inject(sites, sites, shift, shift.detach(), rows, rows)
    (found,) = torch.autograd.grad(first.sum(), shift)
    assert found.item() == 600  # bfloat16 stops counting at 256


@pytest.mark.parametrize("sizes", [(3, 4, 10, 2), (1, 1, 1, 1), (0, 3, 4, 2)])
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_torch_accepts_the_operator(sizes, dtype):
    *differentiable, rows, at = arguments(*sizes, dtype)
    for one in differentiable:
        one.requires_grad_()
    torch.library.opcheck(two_site_inject, (*differentiable, rows, at))


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_a": torch.zeros(2, 4)},
        {"hidden_b": torch.zeros(2, 1, 4)},
        {"hidden_b": torch.zeros(2, 3, 4, dtype=torch.bfloat16)},
        {"shift_a": torch.zeros(5, 1)},
        {"shift_b": torch.zeros(1, 4)},
        {"rows": torch.zeros(1, dtype=torch.long)},
        {"at": torch.zeros(2, dtype=torch.int32)},
        {"at": torch.zeros(2, 1, dtype=torch.long)},
    ],
    ids=lambda wrong: ", ".join(f"{k} {v.dtype} {tuple(v.shape)}" for k, v in wrong.items()),
)
def test_what_torch_would_broadcast_or_cast_is_refused(wrong):
    given = {name: torch.zeros(2, 3, 4) for name in ("hidden_a", "hidden_b")}
    given |= {name: torch.zeros(5, 4) for name in ("shift_a", "shift_b")}
    given |= {name: torch.zeros(2, dtype=torch.long) for name in ("rows", "at")}
    with pytest.raises(ValueError, match="are needed"):
        two_site_inject(*(given | wrong).values())


# Ahead of time: a missing Triton is a failure here, not a reason to skip.

FEATURE_STRIDES = ("a_feature", "b_feature", "shift_a_feature", "shift_b_feature")
OTHER_STRIDES = ("a_row", "a_token", "b_row", "b_token", "shift_a_edit", "shift_b_edit")


def compiled(dtype, capability, ones):
    """Compile the kernel as a launch would, arguments in ``ones`` known to be 1."""
    from kedit_locate import _triton_injection

    exact = torch.promote_types(dtype, torch.float32)
    sites = dict.fromkeys(("out_a", "out_b", "hidden_a", "hidden_b"), TYPES[dtype])
    return compile_ahead(
        _triton_injection.inject,
        sites
        | dict.fromkeys(("shift_a", "shift_b"), TYPES[exact])
        | dict.fromkeys(("rows", "at"), "i64"),
        {
            "EXACT": _triton_injection.EXACT[exact],
            "FEATURES": _triton_injection.FEATURES,
            **dict.fromkeys(ones, 1),
        },
        capability,
        aligned=("width", *OTHER_STRIDES),
    )


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_the_kernel_compiles_ahead_of_time(dtype, capability, record_property):
    found = compiled(dtype, capability, (*FEATURE_STRIDES, "rows_row", "at_row"))
    assert found.cubin[:4] == b"\x7fELF"
    assert f".target sm_{capability}" in found.ptx
    assert found.shared <= 48 * 1024
    record_property("compiled", ("two_site_inject", TYPES[dtype], f"sm_{capability}"))


@pytest.mark.parametrize(
    "ones",
    [(), ("tokens", "width", *FEATURE_STRIDES, *OTHER_STRIDES, "rows_row", "at_row")],
    ids=["any strides", "all sizes 1"],
)
def test_the_kernel_compiles_for_unusual_sizes_and_strides(ones):
    assert compiled(torch.bfloat16, 90, ones).cubin[:4] == b"\x7fELF"
