"""Shards of second moments: a pass that is interrupted goes on, and nobody can tell."""

import pytest
import torch

from kedit_core import TensorCache, Weights, layout_of
from kedit_core.progress import Progress
from kedit_locate.config import Statistics
from kedit_locate.corpus import Corpus
from kedit_locate.moments import collect, halves, moments
from kedit_locate.shards import SHARDS, Shelf, cut, sums_of

WANTED = Statistics(tokens=800, length=16, short=5)  # two shards


def corpus_of(passages, short=0, lengths=(3, 9, 5)):
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randint(1, 300, (lengths[n % len(lengths)],), generator=generator)
        for n in range(passages)
    ]
    return Corpus(name="drawn", passages=tuple(drawn), short=short)


class Stopping(Progress):
    """Interrupts the collecting of moments when so many tokens are done; counts what was sampled."""

    def __init__(self, task, after=None):
        self.stops, self.after, self.done = task, after, 0

    def task(self, description, total, unit=""):
        return _Task(self, description)


class _Task:
    def __init__(self, progress, description):
        self.progress, self.counts = progress, progress.stops in description

    def __enter__(self):
        return self.advance

    def __exit__(self, *_):
        return None

    def advance(self, tokens):
        if self.counts:
            self.progress.done += tokens
            if self.progress.after is not None and self.progress.done > self.progress.after:
                raise KeyboardInterrupt


def asked(model, tokenizer, cache, progress=None, layers=(0, 2), statistics=WANTED):
    downs = [layout_of(model).down_of(layer) for layer in layers]
    about = (statistics, Weights(model), cache, progress or Progress())
    return moments(model, tokenizer, downs, *about)


def forwards(model):
    """Return the list that grows by one with each forward of a model."""
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.fixture
def caches(tmp_path):
    return [TensorCache(tmp_path / name) for name in ("one", "other")]


def test_shards_hold_every_passage_once_and_their_share_of_each_kind():
    corpus = corpus_of(200, short=120)
    shards = cut(corpus, tokens=corpus.tokens // 5)
    assert len(shards) == 4  # an even number
    found = [id(passage) for shard in shards for passage in shard]
    assert sorted(found) == sorted(map(id, corpus.passages))
    short = {id(passage) for passage in corpus.passages[80:]}
    assert [sum(id(one) in short for one in shard) for shard in shards] == [30] * 4
    assert len(cut(corpus_of(31))) == 1
    assert len(cut(corpus_of(32))) == 2


def test_cutting_otherwise_gives_the_same_sums(model):
    downs = [layout_of(model).down_of(layer) for layer in (0, 1)]
    corpus = corpus_of(96, short=40)
    (one, _), (four, _) = (
        sums_of(model, downs, shards, lambda _: None)
        for shards in ([list(corpus.passages)], cut(corpus, tokens=corpus.tokens // 4))
    )
    assert one.half is None
    assert one.whole.count == four.whole.count == corpus.tokens
    torch.testing.assert_close(one.whole.triangle, four.whole.triangle, rtol=1e-12, atol=1e-12)


def test_the_half_is_the_sum_over_the_first_half_of_the_shards(model):
    down = layout_of(model).down_of(1)
    shards = cut(corpus_of(96), tokens=80)
    (found,) = sums_of(model, [down], shards, lambda _: None)
    (first,) = sums_of(model, [down], shards[: len(shards) // 2], lambda _: None)
    (rest,) = sums_of(model, [down], shards[len(shards) // 2 :], lambda _: None)
    assert len(shards) == 6
    assert found.half.count == first.whole.count
    assert torch.equal(found.half.triangle, first.whole.triangle)
    whole = first.whole.plus(rest.whole)
    assert whole.count == found.whole.count
    torch.testing.assert_close(found.whole.triangle, whole.triangle, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("done", [1, 3, 5])
def test_a_pass_that_was_interrupted_goes_on_from_its_finished_shards(model, caches, done):
    down = layout_of(model).down_of(1)
    shards = cut(corpus_of(96), tokens=80)
    shelf = Shelf(caches[0], {down.path: {"module": down.path}})
    enough = sum(sum(map(len, shard)) for shard in shards[:done])
    with pytest.raises(KeyboardInterrupt), Stopping("", enough).task("", 0) as advance:
        sums_of(model, [down], shards, advance, shelf)
    assert len(caches[0].keys(SHARDS)) == done
    seen = forwards(model)
    (resumed,) = sums_of(model, [down], shards, lambda _: None, shelf)
    assert len(seen) == len(shards) - done  # of 16 passages each
    (whole,) = sums_of(model, [down], shards, lambda _: None)
    assert torch.equal(resumed.whole.triangle, whole.whole.triangle)
    assert torch.equal(resumed.half.triangle, whole.half.triangle)
    assert resumed.whole.count == whole.whole.count


@pytest.mark.parametrize(("task", "after"), [("collecting", 450), ("sampling", 410)])
def test_statistics_after_an_interruption_are_those_of_one_pass(
    model, tokenizer, caches, task, after
):
    first = Stopping(task, after)
    with pytest.raises(KeyboardInterrupt):
        asked(model, tokenizer, caches[0], first)
    assert not caches[0].keys("moments")
    resumed = asked(model, tokenizer, TensorCache(caches[0].folder))
    whole = asked(model, tokenizer, caches[1])
    for one, other in zip(resumed, whole, strict=True):
        assert one.count == other.count > 700
        assert torch.equal(one.matrix, other.matrix)
    for key in caches[1].keys("moments").values():
        one, other = (cache.find("moments", key) for cache in caches)
        assert set(one) == {"triangle", "count", "half", "half_count"}
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert not caches[0].keys(SHARDS)  # what is whole needs none


def test_text_that_was_sampled_is_not_sampled_again(model, tokenizer, caches):
    asked(model, tokenizer, caches[0], layers=[0])
    seen = forwards(model)
    (found,) = asked(model, tokenizer, caches[0], layers=[1])
    assert len(seen) < 20  # sampling takes one a token
    (fresh,) = asked(model, tokenizer, caches[1], layers=[1])
    assert torch.equal(found.matrix, fresh.matrix)


def test_a_damaged_shard_is_made_anew_and_said_so(model, tokenizer, caches):
    with pytest.raises(KeyboardInterrupt):
        asked(model, tokenizer, caches[0], Stopping("collecting", 450))
    kept = caches[0].keys(SHARDS)
    path = next(iter(kept))
    bits = bytearray(path.read_bytes())
    bits[-9] ^= 1
    path.write_bytes(bits)
    with pytest.warns(UserWarning, match="damaged"):
        resumed = asked(model, tokenizer, TensorCache(caches[0].folder))
    whole = asked(model, tokenizer, caches[1])
    assert all(torch.equal(a.matrix, b.matrix) for a, b in zip(resumed, whole, strict=True))


def test_a_pass_without_a_shelf_gives_what_is_kept(model, tokenizer, caches):
    down, corpus = layout_of(model).down_of(0), corpus_of(64)
    shelf = Shelf(caches[0], {down.path: {"module": down.path}})
    (kept,) = sums_of(model, [down], cut(corpus), lambda _: None, shelf)
    (moment,) = collect(model, [down], corpus, Progress())
    average = (kept.whole.triangle / corpus.tokens).float()
    rows, columns = torch.tril_indices(*moment.matrix.shape)
    assert torch.equal(moment.matrix[rows, columns], average)


def test_halves_are_kept_beside_the_whole(model, tokenizer, caches):
    downs = [layout_of(model).down_of(layer) for layer in (0, 2)]
    about = (WANTED, Weights(model), caches[0], Progress())
    plain = asked(model, tokenizer, caches[0])
    for (whole, half), expected in zip(halves(model, tokenizer, downs, *about), plain, strict=True):
        assert torch.equal(whole.matrix, expected.matrix)
        assert 0.4 < half.count / whole.count < 0.6
        assert not torch.equal(whole.matrix, half.matrix)
