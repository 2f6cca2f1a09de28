"""A written weight is a pure function of its original and of the ordered list of what is in force."""

import pytest
import torch
from torch import nn

from kedit_core import Delta, Dense, LowRank, SideMemory, Weights
from kedit_core.digests import state_digest
from kedit_core.errors import DeltaError, ModelError
from kedit_core.sums import EXPORT_RANKS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PATHS = {
    "gpt2": "transformer.h.0.mlp.c_proj.weight",
    "llama": "model.layers.0.mlp.down_proj.weight",
    "gpt2 square": "transformer.h.0.attn.c_proj.weight",
    "llama square": "model.layers.0.self_attn.o_proj.weight",
}
CHUNK = EXPORT_RANKS[-1]


def noise(*shape, seed=0, dtype=torch.float32, scale=0.02):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def shape_of(weights, path):
    return tuple(weights.matrix(path).shape)


def low_rank(weights, path, rank=2, seed=0, **options):
    out, into = shape_of(weights, path)
    left = noise(out, rank, seed=2 * seed, **options)
    return LowRank(
        weight=path, left=left, right=noise(rank, into, seed=2 * seed + 1, **options) * 10
    )


def dense(weights, path, seed=0, **options):
    return Dense(weight=path, update=noise(*shape_of(weights, path), seed=seed, **options))


def delta(*parts):
    return Delta(method="any", requests=(), parts=parts)


def changed(model, path):
    return model.get_parameter(path).detach().clone()


def oracle(base, parts, conv1d):
    """Return base + Σ parts in float64, in the layout of the stored matrix."""
    total = torch.zeros(parts[0].shape, dtype=torch.float64)
    for part in parts:
        if isinstance(part, LowRank):
            total += part.left.double() @ part.right.double()
        else:
            total += part.update.double()
    return base.double() + (total.t() if conv1d else total)


@pytest.fixture(params=sorted(PATHS))
def place(request):
    """Return family and path of a matrix: Conv1D and Linear, square ones too."""
    return request.param.split()[0], PATHS[request.param]


@pytest.fixture(params=["gpt2", "llama"])
def small(request, tiny):
    """Return a model, its weights and one path."""
    model = tiny(request.param)
    return model, Weights(model), PATHS[request.param]


# What is written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_written_weight_is_what_float64_says_rounded_once(tiny, place, dtype):
    family, path = place
    model = tiny(family, dtype)
    weights = Weights(model)
    base = changed(model, path)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    parts = [
        low_rank(weights, path, rank=3, seed=1, dtype=kind),
        dense(weights, path, seed=5, dtype=kind),
        low_rank(weights, path, rank=8, seed=3, dtype=kind),
    ]
    for part in parts:
        weights.add(delta(part))
    wanted = oracle(base, parts, family == "gpt2")
    # Half a unit in the last place of the model's dtype, and what float32 sums lose before.
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + (0 if dtype == torch.float64 else 1e-6)
    assert ((changed(model, path).double() - wanted).abs() <= allowed + 1e-15).all()
    assert model.get_parameter(path).dtype == dtype
    assert not torch.equal(changed(model, path), base)


def test_an_update_reaches_the_model_in_its_own_orientation(tiny, place):
    family, path = place
    model = tiny(family, torch.float64)
    weights = Weights(model)
    module = model.get_submodule(path.removesuffix(".weight"))
    part = low_rank(weights, path, rank=2, dtype=torch.float64)
    hidden = noise(5, part.shape[1], seed=9, dtype=torch.float64)
    before = module(hidden)
    weights.add(delta(part))
    gained = module(hidden) - before
    assert torch.allclose(gained, hidden @ part.right.T @ part.left.T, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_depends_on_the_list_in_force_and_not_on_how_it_came_about(tiny, place, dtype):
    family, path = place
    straight, detour = tiny(family, dtype), tiny(family, dtype)
    one, other = Weights(straight), Weights(detour)
    parts = [low_rank(one, path, rank=rank, seed=rank) for rank in (1, 300, 300, 2)]
    parts += [dense(one, path, seed=7)]
    for part in parts[1:]:
        one.add(delta(part))
    first = other.add(delta(parts[0]))
    wrong = other.add(delta(parts[4]))
    for part in parts[1:]:
        other.add(delta(part))
    with other.temporarily([parts[0]]), other.original():
        pass
    wrong.undo()
    first.undo()
    assert torch.equal(changed(straight, path), changed(detour, path))


@pytest.mark.parametrize("rank", [1, 2, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_are_padded_and_finished_ones_reused_to_the_last_bit(tiny, rank):
    path = PATHS["llama"]
    grown, fresh = tiny(), tiny()
    one, other = Weights(grown), Weights(fresh)
    whole = low_rank(one, path, rank=rank, seed=4)
    singles = [
        LowRank(weight=path, left=whole.left[:, n : n + 1], right=whole.right[n : n + 1])
        for n in range(rank)
    ]
    # Many small additions, as a long stream makes them, against all at once.
    for start in range(0, rank, 100):
        one.add(delta(*singles[start : start + 100]))
    other.add(delta(whole))
    assert torch.equal(changed(grown, path), changed(fresh, path))
    wanted = oracle(other.base_of(path), [whole], conv1d=False)
    assert (changed(fresh, path).double() - wanted).abs().max() < 1e-4


def test_a_finished_chunk_is_forgotten_when_something_in_it_goes(tiny):
    path = PATHS["llama"]
    model = tiny()
    weights = Weights(model)
    before = state_digest(model)
    parts = [low_rank(weights, path, rank=400, seed=seed) for seed in range(4)]
    applied = [weights.add(delta(part)) for part in parts]
    seen = []
    for place in (1, 3, 0, 2):
        applied[place].undo()
        seen.append(place)
        left = [part for n, part in enumerate(parts) if n not in seen]
        fresh = tiny()
        again = Weights(fresh)
        for part in left:
            again.add(delta(part))
        assert torch.equal(changed(model, path), changed(fresh, path))
    assert state_digest(model) == before


def test_equal_parts_in_force_twice_come_out_one_by_one(small):
    model, weights, path = small
    base = changed(model, path)
    part = low_rank(weights, path)
    first = weights.add(delta(part))
    once = changed(model, path)
    second = weights.add(delta(part))
    first.undo()
    assert torch.equal(changed(model, path), once)
    first.undo()
    assert torch.equal(changed(model, path), once)
    second.undo()
    assert torch.equal(changed(model, path), base)


def test_one_delta_may_change_a_weight_several_times_and_several_weights(small):
    model, weights, path = small
    other = path.replace(".0.", ".1.")
    before = state_digest(model)
    parts = [low_rank(weights, path), dense(weights, path), low_rank(weights, other)]
    applied = weights.add(delta(*parts))
    assert weights.touched == (path, other)
    conv1d = "c_proj" in path
    assert torch.allclose(
        changed(model, path).double(), oracle(weights.base_of(path), parts[:2], conv1d), atol=1e-6
    )
    applied.undo()
    assert state_digest(model) == before


def test_an_edit_leaves_every_other_bit_of_the_model_alone(small):
    model, weights, path = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    weights.add(delta(low_rank(weights, path)))
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [path]
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_an_edit_works_on_parameters_that_require_gradients_and_keeps_none(small):
    model, weights, path = small
    model.requires_grad_(True)
    weights.add(delta(low_rank(weights, path)))
    parameter = model.get_parameter(path)
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.grad_fn is None


def test_the_base_stays_what_it_was_and_its_name_too(small):
    model, weights, path = small
    base, named, digests = changed(model, path), weights.fingerprint, weights.base_digests(path)
    weights.add(delta(low_rank(weights, path)))
    assert torch.equal(weights.base_of(path), base)
    late = Weights(model)
    assert weights.base_digests(path) == digests != late.base_digests(path)
    assert weights.fingerprint == named != late.fingerprint
    assert list(digests) == ["float32", "bfloat16", "float16"]


def test_the_name_of_the_base_is_the_same_when_first_asked_after_an_edit(tiny):
    path = PATHS["llama"]
    early, late = Weights(tiny()), Weights(tiny())
    late.add(delta(low_rank(late, path)))
    assert late.fingerprint == early.fingerprint
    assert late.base_digests(path) == early.base_digests(path)


# A method's own kernel


def exact_kernel(out, base, left, right):
    out.copy_(base.to(left.dtype) + left @ right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_write_kernel_fills_the_weight_from_base_and_all_factors(tiny, place, dtype):
    family, path = place
    model = tiny(family, dtype)
    weights = Weights(model)
    base = changed(model, path)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    parts = [low_rank(weights, path, rank=2 + seed, seed=seed, dtype=kind) for seed in range(3)]
    given = []

    def kernel(out, base, left, right):
        given.append((out.dtype, tuple(out.shape), base.dtype, left.dtype, tuple(left.shape)))
        exact_kernel(out, base, left, right)

    weights.add(delta(parts[0]))
    weights.add(delta(parts[1]), write=kernel)
    last = weights.add(delta(parts[2]), write=kernel)
    shape = shape_of(weights, path)
    assert given == [
        (dtype, shape, dtype, kind, (shape[0], 5)),
        (dtype, shape, dtype, kind, (shape[0], 9)),
    ]
    wanted = oracle(base, parts, family == "gpt2")
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + (0 if dtype == torch.float64 else 1e-6)
    assert ((changed(model, path).double() - wanted).abs() <= allowed + 1e-15).all()
    last.undo()
    assert len(given) == 3


def test_a_kernel_rests_while_a_dense_update_is_in_force(small):
    model, weights, path = small
    base = changed(model, path)
    calls = []

    def kernel(out, base, left, right):
        calls.append(left.shape[1])
        exact_kernel(out, base, left, right)

    applied = weights.add(delta(dense(weights, path)))
    written = weights.add(delta(low_rank(weights, path)), write=kernel)
    assert calls == []
    applied.undo()
    assert calls == [2]
    written.undo()
    assert torch.equal(changed(model, path), base)


@pytest.mark.parametrize("fault", [ZeroDivisionError, None])
def test_a_kernel_that_fails_or_writes_nonsense_changes_nothing(small, fault):
    model, weights, path = small
    weights.add(delta(low_rank(weights, path, seed=3)))
    before = state_digest(model)

    def kernel(out, base, left, right):
        if fault:
            raise fault
        out.fill_(float("nan"))

    with pytest.raises(fault or DeltaError):
        weights.add(delta(low_rank(weights, path)), write=kernel)
    assert state_digest(model) == before


# What is refused


def refused(weights, part, error, complaint, model):
    before, touched = state_digest(model), weights.touched
    with pytest.raises(error, match=complaint):
        weights.add(delta(part))
    with pytest.raises(error, match=complaint), weights.temporarily([part]):
        pytest.fail("the block was entered")
    assert state_digest(model) == before
    assert weights.touched == touched


@pytest.mark.parametrize(
    "path", ["", "nowhere", "lm_head", "model.layers.9.mlp.down_proj.weight", "lm_head.bias"]
)
def test_a_parameter_that_does_not_exist_is_refused(tiny, path):
    model = tiny()
    part = Dense(weight=path, update=torch.ones(3, 3))
    refused(Weights(model), part, DeltaError, "no such parameter", model)


def test_an_update_of_the_wrong_shape_is_refused_with_both_shapes(small):
    model, weights, path = small
    out, into = shape_of(weights, path)
    for part in (
        Dense(weight=path, update=torch.ones(into, out)),
        LowRank(weight=path, left=torch.ones(into, 1), right=torch.ones(1, out)),
        LowRank(weight=path, left=torch.ones(1, 1), right=torch.ones(1, 1)),
    ):
        refused(weights, part, DeltaError, rf"\({out}, {into}\)", model)


def test_a_weight_that_is_not_in_memory_is_refused(small):
    model, weights, path = small
    part = low_rank(weights, path)
    module = model.get_submodule(path.removesuffix(".weight"))
    kept, module.weight = module.weight, nn.Parameter(module.weight.to("meta"))
    with pytest.raises(ModelError, match="not in memory"):
        weights.add(delta(part))
    module.weight = kept
    weights.add(delta(part))


@pytest.mark.parametrize("path", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_weight_is_refused_unless_asked_for(tiny, path):
    model = tiny("gpt2")
    refused(
        Weights(model), Dense(weight=path, update=torch.ones(64, 16)), ModelError, "tied", model
    )


def test_a_tied_weight_is_one_weight_under_both_its_names(tiny):
    model = tiny("gpt2")
    before = state_digest(model)
    weights = Weights(model, allow_tied=True)
    paths = ("lm_head.weight", "transformer.wte.weight")
    updates = [Dense(weight=path, update=noise(64, 16, seed=n)) for n, path in enumerate(paths)]
    base = changed(model, paths[0])
    applied = [weights.add(delta(update)) for update in updates]
    assert torch.allclose(
        changed(model, paths[1]), base + updates[0].update + updates[1].update, atol=1e-6
    )
    applied[0].undo()
    assert torch.allclose(changed(model, paths[0]), base + updates[1].update, atol=1e-6)
    with weights.original():
        assert state_digest(model) == before
    applied[1].undo()
    assert state_digest(model) == before
    assert weights.base_digests(paths[0]) == weights.base_digests(paths[1])


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64], ids=str
)
def test_a_quantised_weight_is_refused(tiny, dtype):
    model = tiny()
    path = PATHS["llama"]
    weights = Weights(model)
    part = low_rank(weights, path)
    module = model.get_submodule(path.removesuffix(".weight"))
    module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
    before = module.weight.detach().clone()
    with pytest.raises(ModelError, match=str(dtype)):
        weights.add(delta(part))
    assert torch.equal(module.weight.view(torch.uint8), before.view(torch.uint8))


def test_a_vector_is_refused(tiny):
    model = tiny()
    part = Dense(weight="model.norm.weight", update=torch.ones(1, 16))
    refused(Weights(model), part, ModelError, "no plain matrix", model)


def test_a_side_memory_is_not_written(small):
    _, weights, path = small
    memory = SideMemory(at="", tensors={"keys": torch.ones(2)})
    with pytest.raises(DeltaError, match="side memory"):
        weights.add(delta(low_rank(weights, path), memory))
    assert weights.touched == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_cannot_even_be_made(value):
    bad = torch.full((2, 2), value)
    with pytest.raises(DeltaError, match="not finite"):
        Dense(weight="w", update=bad)
    with pytest.raises(DeltaError, match="not finite"):
        LowRank(weight="w", left=torch.ones(2, 2), right=bad)


def test_a_weight_that_would_overflow_its_dtype_is_refused_and_the_others_stay(tiny):
    model = tiny(dtype=torch.float16)
    weights = Weights(model)
    path, other = PATHS["llama"], PATHS["llama square"]
    kept = weights.add(delta(low_rank(weights, path)))
    before = state_digest(model)
    huge = Dense(weight=other, update=torch.full(shape_of(weights, other), 1e6))
    with pytest.raises(DeltaError, match=r"not finite in torch\.float16"):
        weights.add(delta(low_rank(weights, path, seed=3), huge))
    assert state_digest(model) == before
    with pytest.raises(DeltaError), weights.temporarily([low_rank(weights, path, seed=3), huge]):
        pytest.fail("the block was entered")
    assert state_digest(model) == before
    kept.undo()
    assert state_digest(model) == state_digest(tiny(dtype=torch.float16))


# Shown for a while


def test_what_is_shown_for_a_while_is_gone_to_the_last_bit_also_when_the_block_raises(small):
    model, weights, path = small
    weights.add(delta(low_rank(weights, path)))
    before = state_digest(model)
    parts = [low_rank(weights, path, seed=5), dense(weights, path.replace(".0.", ".1."))]
    with weights.temporarily(parts):
        inside = state_digest(model)
        with weights.temporarily([low_rank(weights, path, seed=8)]):
            assert state_digest(model) != inside
        assert state_digest(model) == inside
    assert state_digest(model) == before != inside
    with pytest.raises(ZeroDivisionError), weights.temporarily(parts):
        _ = 1 / 0
    assert state_digest(model) == before
    with weights.temporarily([]):
        assert state_digest(model) == before


def test_the_original_is_shown_to_the_last_bit_also_when_the_block_raises(small):
    model, weights, path = small
    original = state_digest(model)
    weights.add(delta(low_rank(weights, path), dense(weights, path)))
    edited = state_digest(model)
    with weights.original():
        assert state_digest(model) == original
        with weights.original():
            assert state_digest(model) == original
        assert state_digest(model) == original
    assert state_digest(model) == edited
    with pytest.raises(ZeroDivisionError), weights.original():
        _ = 1 / 0
    assert state_digest(model) == edited


def test_parts_shown_for_a_while_equal_the_same_parts_written(small, tiny):
    model, weights, path = small
    parts = [low_rank(weights, path, rank=3), dense(weights, path)]
    with weights.temporarily(parts):
        shown = state_digest(model)
    weights.add(delta(*parts))
    assert state_digest(model) == shown


@pytest.mark.parametrize("view", ["temporarily", "original"])
def test_an_edit_made_while_something_else_is_shown_is_there_afterwards(small, tiny, view):
    model, weights, path = small
    first, second, other = (low_rank(weights, path, seed=seed) for seed in (1, 2, 3))
    gone = weights.add(delta(first))
    with weights.temporarily([other]) if view == "temporarily" else weights.original():
        kept = weights.add(delta(second))
        gone.undo()
    there = changed(model, path)
    kept.undo()
    weights.add(delta(second))
    assert torch.equal(changed(model, path), there)


def test_what_a_block_wrote_and_left_is_taken_out_at_its_end(small):
    model, weights, path = small
    kept = weights.add(delta(low_rank(weights, path)))
    before = state_digest(model)
    with weights.unchanged():
        weights.add(delta(dense(weights, path)))
        kept.undo()
    assert state_digest(model) == before
