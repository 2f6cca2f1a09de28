"""The search of a memory: its torch body, its Triton kernel under the interpreter, its cubins."""

import pytest
import torch

from kedit_core.testing.kernels import CAPABILITIES, ROUNDING, TYPES, compile_ahead, run_alone
from kedit_serac.kernels import scope_top1

READ = {dtype: name for dtype, name in TYPES.items() if dtype != torch.float64}
SIZES = {  # queries, edits, width; a tile of the kernel is 16 queries, 64 edits and 32 components
    "one of everything": (1, 1, 1),
    "one query": (1, 70, 40),
    "one edit": (5, 1, 33),
    "one component": (3, 9, 1),
    "just a tile": (16, 64, 32),
    "one past a tile": (17, 65, 33),
    "several spans": (3, 300, 8),
    "no queries": (0, 4, 8),
}


@pytest.fixture(params=["torch body", "interpreted kernel"])
def search(request):
    """Return what searches: the torch body, or the Triton kernel under the interpreter."""
    if request.param == "torch body":
        return scope_top1
    from kedit_serac import _triton

    call = request.getfixturevalue("interpreted")
    return lambda *given: call(_triton.scope_top1, *given)


def arguments(queries, edits, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(queries + 10 * edits + width)
    asked = torch.randn(queries, width, generator=generator)
    return asked.to(dtype), torch.randn(edits, width, generator=generator).to(dtype)


def assert_found(search, asked, memory):
    best, place = search(asked, memory)
    assert best.dtype == torch.promote_types(memory.dtype, torch.float32)
    assert place.dtype == torch.int64
    products = asked.double() @ memory.double().T
    wanted = products.max(1) if len(asked) else (products.sum(1), products.sum(1).long())
    scale = float(products.abs().max()) if products.numel() else 1.0
    torch.testing.assert_close(
        best.double(), wanted[0], rtol=0, atol=ROUNDING[torch.float32] * scale
    )
    # Where two are as near as rounding, either place is right.
    found = products.gather(1, place[:, None])[:, 0] if len(asked) else best.double()
    torch.testing.assert_close(found, wanted[0], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_query_finds_its_nearest_edit_whatever_the_sizes(search, sizes):
    assert_found(search, *arguments(*sizes))


@pytest.mark.parametrize("dtype", READ, ids=READ.values())
def test_each_query_finds_its_nearest_edit_in_every_dtype(search, dtype):
    assert_found(search, *arguments(18, 130, 40, dtype))


def test_tensors_may_lie_in_any_order(search):
    asked, memory = arguments(34, 140, 72)
    assert_found(search, asked[::2, ::2], memory.T.contiguous().T[:, ::2])


def test_of_equal_edits_the_first_is_found(search):
    asked, memory = ((8 * one).round() for one in arguments(4, 3, 8))  # no sum is rounded
    best = (asked @ memory.T).argmax(1)
    assert torch.equal(search(asked, memory.repeat(90, 1))[1], best)


def test_more_edits_than_a_tile_of_the_torch_body():
    assert_found(scope_top1, *arguments(2, 8200, 4))


@pytest.mark.parametrize("sizes", [(3, 5, 4), (0, 2, 3)])
def test_torch_accepts_the_operator(sizes):
    torch.library.opcheck(scope_top1, arguments(*sizes))


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((3,), (4, 3)), ((2, 3), (0, 3))], ids=str)
def test_shapes_that_do_not_belong_together_are_refused(shapes):
    with pytest.raises(ValueError, match="are needed"):
        scope_top1(*(torch.zeros(shape) for shape in shapes))


def test_without_triton_the_operator_works_all_the_same():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from kedit_serac.kernels import scope_top1\n"
        "assert scope_top1(torch.ones(1, 2), torch.ones(3, 2))[1].item() == 0"
    )
    assert run_alone(program) == ""


# Ahead of time: a missing Triton is a failure here, not a reason to skip.


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("dtype", READ, ids=READ.values())
def test_the_kernel_compiles_ahead_of_time(dtype, capability, record_property):
    from kedit_serac import _triton

    found = compile_ahead(
        _triton.best_of_span,
        dict.fromkeys(("queries", "memory"), TYPES[dtype]) | {"best": "fp32", "place": "i64"},
        {
            "QUERIES": _triton.QUERIES,
            "EDITS": _triton.EDITS,
            "WIDTH": _triton.WIDTH,
            "query_column": 1,
            "memory_column": 1,
        },
        capability,
        aligned=("width", "span", "query_row", "memory_row"),
        options={"num_warps": _triton.WARPS},
    )
    assert found.cubin[:4] == b"\x7fELF"
    assert f".target sm_{capability}" in found.ptx
    assert found.shared <= 99 * 1024
    assert "mma" not in found.ptx  # tensor cores would round the products
    record_property("compiled", ("scope_top1", TYPES[dtype], f"sm_{capability}"))
