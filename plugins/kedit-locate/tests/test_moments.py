"""Second moments: the plain average of k kᵀ, kept, and always of the unedited model."""

import pytest
import torch
from attrs import evolve

from kedit_core import Dense, TensorCache, Weights, layout_of
from kedit_core.progress import Progress
from kedit_locate.config import Statistics
from kedit_locate.corpus import Corpus, read_corpus
from kedit_locate.moments import Moment, collect, metric_of, moments, packed, unpacked

FEATURES = 24
COLLECTING = "collecting second moments"
SHORT = Statistics(tokens=300, length=16)


def passages(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 300, (n,), generator=generator) for n in lengths)


def corpus_of(rows):
    return Corpus(name="drawn", passages=tuple(rows))


def plain_moment(model, path, rows):
    """Return Σ k kᵀ / tokens from one forward a passage, without padding."""
    total, count = 0.0, 0
    for ids in rows:
        seen = []
        hook = lambda _, args, seen=seen: seen.append(args[0])  # noqa: E731
        handle = model.get_submodule(path).register_forward_pre_hook(hook)
        model(input_ids=ids[None], use_cache=False)
        handle.remove()
        keys = seen[0].reshape(len(ids), -1)
        total, count = total + keys.T @ keys, count + len(ids)
    return total / count, count


def asked(model, tokenizer, layers, statistics=SHORT, *, weights=None, cache=None, progress=None):
    layout = layout_of(model)
    return moments(
        model,
        tokenizer,
        [layout.down_of(layer) for layer in layers],
        statistics,
        weights or Weights(model),
        cache or TensorCache(),
        progress or Progress(),
    )


def metric(model, tokenizer, statistics=SHORT, cache=None, progress=None, layer=1):
    down, weights = layout_of(model).down_of(layer), Weights(model)
    found = (statistics, weights, cache or TensorCache(), progress or Progress())
    return metric_of(model, tokenizer, down, *found)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_moment_is_the_plain_average_and_pads_contribute_nothing(model, layer):
    down = layout_of(model).down_of(layer)
    rows = passages([1, 9, 3, 17, 2] * 8)  # more than one chunk, ragged
    (found,) = collect(model, [down], corpus_of(rows), Progress())
    expected, count = plain_moment(model, down.path, rows)
    assert found.count == count == sum(map(len, rows))
    assert found.matrix.dtype == torch.float32
    torch.testing.assert_close(found.matrix, expected.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.matrix, found.matrix.T)


def test_the_moment_does_not_hang_on_how_passages_are_chunked(model):
    down = layout_of(model).down_of(1)
    rows = passages([1, 9, 3, 17, 2] * 8)
    (together,) = collect(model, [down], corpus_of(rows), Progress())
    (shuffled,) = collect(model, [down], corpus_of(reversed(rows)), Progress())
    parts = [
        collect(model, [down], corpus_of(part), Progress())[0] for part in (rows[:7], rows[7:])
    ]
    summed = sum(part.matrix.double() * part.count for part in parts) / together.count
    torch.testing.assert_close(shuffled.matrix, together.matrix, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(summed.float(), together.matrix, rtol=1e-6, atol=1e-6)


def test_several_layers_in_one_pass_are_the_layers_one_by_one(model):
    downs = [layout_of(model).down_of(layer) for layer in range(3)]
    corpus = corpus_of(passages([1, 9, 3, 17] * 5))
    together = collect(model, downs, corpus, Progress())
    for down, found in zip(downs, together, strict=True):
        (alone,) = collect(model, [down], corpus, Progress())
        assert torch.equal(found.matrix, alone.matrix)
        assert found.count == alone.count
    assert not torch.equal(together[0].matrix, together[1].matrix)


def test_half_precision_features_are_summed_exactly(tiny):
    model = tiny("llama", dtype=torch.bfloat16)
    down = layout_of(model).down_of(1)
    rows = passages([16] * 3)
    (found,) = collect(model, [down], corpus_of(rows), Progress())
    # The same chunk of the same features, summed in float64.
    seen = []
    handle = model.get_submodule(down.path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    model(input_ids=torch.stack(rows), use_cache=False)
    handle.remove()
    keys = seen[0].reshape(48, -1).double()
    torch.testing.assert_close(found.matrix.double(), keys.T @ keys / 48, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 24, 257])
def test_packing_keeps_every_bit_of_a_moment(width):
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    moment = Moment(matrix=matrix + matrix.T, count=12345)
    kept = packed(moment)
    assert kept["triangle"].numel() == width * (width + 1) // 2
    again = unpacked(kept)
    assert torch.equal(again.matrix, moment.matrix)
    assert again.count == 12345


def test_a_moment_is_kept_on_disk_and_not_collected_again(model, tokenizer, diary):
    (first,) = asked(model, tokenizer, [1], progress=diary)
    assert COLLECTING in diary.tasks
    diary.tasks.clear()
    (again,) = asked(model, tokenizer, [1], progress=diary)  # another cache object, the same folder
    assert not diary.tasks
    assert torch.equal(first.matrix, again.matrix)


@pytest.mark.parametrize(
    "other",
    [Statistics(tokens=301, length=16), Statistics(tokens=300, length=15)],
    ids=["tokens", "length"],
)
def test_other_settings_are_other_statistics(model, tokenizer, diary, other):
    asked(model, tokenizer, [1])
    asked(model, tokenizer, [1], other, progress=diary)
    assert COLLECTING in diary.tasks


def test_another_model_of_the_same_shape_has_its_own_statistics(tiny, tokenizer):
    first, second = (asked(tiny("gpt2", seed=seed), tokenizer, [1])[0] for seed in (0, 1))
    assert not torch.allclose(first.matrix, second.matrix)


def test_statistics_come_from_the_original_while_an_edit_is_in_force(model, tokenizer, tmp_path):
    (before,) = asked(model, tokenizer, [1])
    weights, down = Weights(model), layout_of(model).down_of(0)
    update = 2 * torch.randn(down.out_features, down.in_features, dtype=torch.float64)
    with weights.temporarily([Dense(weight=down.weight, update=update)]):
        edited = model.get_parameter(down.weight).clone()
        fresh = TensorCache(tmp_path / "fresh")
        (during,) = asked(model, tokenizer, [1], weights=weights, cache=fresh)
        assert torch.equal(model.get_parameter(down.weight), edited)
        # The key of the cache is the original's, too.
        assert asked(model, tokenizer, [1], weights=weights)[0].count == before.count
        assert len(TensorCache().keys("moments")) == 1
    assert torch.equal(during.matrix, before.matrix)


def test_only_the_layers_that_are_missing_are_collected(model, tokenizer):
    layout, weights, cache = layout_of(model), Weights(model), TensorCache()
    asked(model, tokenizer, [0], cache=cache, weights=weights)
    (path,) = cache.keys("moments")
    foreign = Moment(matrix=torch.eye(FEATURES), count=7)  # as `stats import` puts it there
    (key,) = cache.keys("moments").values()
    cache.put("moments", key, packed(foreign))
    found = asked(model, tokenizer, [0, 1], cache=cache, weights=weights)
    assert found[0].count == 7
    assert torch.equal(found[0].matrix, foreign.matrix)
    (alone,) = collect(
        model,
        [layout.down_of(1)],
        read_corpus(model, tokenizer, None, 300, 16, Progress()),
        Progress(),
    )
    assert torch.equal(found[1].matrix, alone.matrix)
    assert path.exists()


def test_a_damaged_file_is_reported_and_made_anew(model, tokenizer):
    (first,) = asked(model, tokenizer, [1])
    (path,) = TensorCache().keys("moments")
    bits = bytearray(path.read_bytes())
    bits[-5] ^= 1
    path.write_bytes(bits)
    with pytest.warns(UserWarning, match="damaged"):
        (again,) = asked(model, tokenizer, [1])
    assert torch.equal(first.matrix, again.matrix)
    assert None not in TensorCache().keys("moments").values()


def test_without_a_folder_and_without_memory_every_layer_is_still_there(model, tokenizer, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    with pytest.warns(UserWarning, match="cannot keep"):
        found = asked(model, tokenizer, [0, 1, 2], cache=TensorCache(blocked, memory=0))
    assert [len(moment.matrix) for moment in found] == [FEATURES] * 3
    whole = asked(model, tokenizer, [0, 1, 2])
    assert all(torch.equal(a.matrix, b.matrix) for a, b in zip(found, whole, strict=True))


def test_the_model_is_lent_in_eval_mode_and_comes_back_as_it_was(model, tokenizer):
    (expected,) = asked(model, tokenizer, [1])
    model.train().requires_grad_(True)
    other = TensorCache(TensorCache().folder / "other")
    (found,) = asked(model, tokenizer, [1], cache=other)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(found.matrix, expected.matrix)


def test_the_metric_solves_with_the_moment(model, tokenizer):
    statistics = Statistics(tokens=2000, length=16)
    (moment,) = asked(model, tokenizer, [1], statistics)
    found = metric(model, tokenizer, statistics)
    assert found.ridge == 0
    keys = torch.randn(3, FEATURES, dtype=torch.float64)
    solved = torch.linalg.solve(moment.matrix.double(), keys.T).T
    torch.testing.assert_close(found.whiten(keys), solved, rtol=1e-6, atol=1e-6)


def test_the_factor_is_kept_with_its_ridge(model, tokenizer, diary):
    few = Statistics(tokens=8, length=4)  # fewer tokens than features
    first = metric(model, tokenizer, few)
    assert first.ridge > 0
    again = metric(model, tokenizer, few, progress=diary)
    assert not diary.tasks
    assert again.ridge == first.ridge
    assert torch.equal(again.cholesky, first.cholesky)


def test_the_identity_needs_no_text(model, tokenizer, diary):
    found = metric(model, tokenizer, Statistics(metric="identity"), progress=diary)
    assert found.cholesky is None
    assert not diary.tasks
    keys = torch.randn(3, FEATURES, dtype=torch.float64)
    assert torch.equal(found.whiten(keys), keys)


def keys_over_text(model, tokenizer, statistics=SHORT, layer=1):
    """Return every key (tokens, in_features) of the text that statistics are taken from, unpadded."""
    down = layout_of(model).down_of(layer)
    text = read_corpus(model, tokenizer, None, statistics.tokens, statistics.length, Progress())
    found = []
    hook = lambda _, args: found.append(args[0].flatten(0, 1))  # noqa: E731
    handle = model.get_submodule(down.path).register_forward_pre_hook(hook)
    for ids in text.passages:
        model(input_ids=ids[None], use_cache=False)
    handle.remove()
    return torch.cat(found)


WEIGHED = evolve(SHORT, metric="leverage")


def test_by_leverage_a_key_counts_as_often_as_it_stands_out(model, tokenizer):
    (found,) = asked(model, tokenizer, [1], WEIGHED)
    keys = keys_over_text(model, tokenizer)
    plain = keys.T @ keys / len(keys)
    leverage = ((keys @ torch.linalg.inv(plain)) * keys).sum(1)
    expected = (keys * leverage[:, None]).T @ keys / leverage.sum()
    assert found.count == len(keys)
    torch.testing.assert_close(found.matrix, expected.float(), rtol=1e-4, atol=1e-6)


def test_by_leverage_keys_that_stand_out_are_disturbed_less(model, tokenizer):
    keys = keys_over_text(model, tokenizer)
    even = metric(model, tokenizer)
    standing_out = even.leverage(keys).argsort(descending=True)[:40]
    edited, rare = keys[standing_out[::8]], keys[standing_out[4::8]]

    def disturbed(own):
        direction = own.whiten(edited)
        right = direction / (edited.double() * direction).sum(1, keepdim=True)
        return float((rare.double() @ right.T).square().sum())

    assert disturbed(metric(model, tokenizer, WEIGHED)) < disturbed(even)


def test_by_leverage_the_even_moments_are_kept_too_and_the_text_is_sampled_once(
    model, tokenizer, diary
):
    metric(model, tokenizer, WEIGHED, progress=diary)
    assert diary.tasks.count("sampling text for statistics") == 2  # the second one finds it kept
    assert diary.tasks.count(COLLECTING) == 1
    assert diary.tasks.count("collecting weighed second moments") == 1
    diary.tasks.clear()
    metric(model, tokenizer, progress=diary)
    assert not diary.tasks
