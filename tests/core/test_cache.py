import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from time import sleep

import pytest
import torch

from kedit_core.cache import TensorCache, default_folder

KEY = {"model": "abc", "layer": 3, "tokens": 1000}


def some():
    return {"matrix": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


def never():
    raise AssertionError("this is kept and must not be made again")


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)
    return True


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


def test_what_was_made_once_is_kept_for_this_process_and_the_next(folder):
    cache = TensorCache(folder)
    assert same(cache.get("moments", KEY, some), some())
    assert same(cache.get("moments", KEY, never), some())
    assert same(TensorCache(folder).get("moments", KEY, never), some())


def test_find_returns_what_is_kept_and_none_for_the_rest(folder):
    TensorCache(folder).put("moments", KEY, some())
    assert same(TensorCache(folder).find("moments", KEY), some())
    assert TensorCache(folder).find("moments", {**KEY, "layer": 4}) is None
    assert TensorCache(folder).find("factors", KEY) is None


@pytest.mark.parametrize("change", [{"layer": 4}, {"layer": "3"}, {"layer": None}, {"extra": 1}])
def test_another_key_is_another_file(folder, change):
    cache = TensorCache(folder)
    assert cache.path("moments", {**KEY, **change}) != cache.path("moments", KEY)


def test_the_order_of_a_key_does_not_matter(folder):
    cache = TensorCache(folder)
    assert cache.path("k", dict(reversed(KEY.items()))) == cache.path("k", KEY)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, float("nan"), float("inf")]),
        torch.randn(3, 4).double(),
        torch.randn(3, 4).bfloat16(),
        torch.randn(3, 4).T,
        torch.randn(6)[::2],
        torch.zeros(0, 3),
        torch.tensor(True),
        torch.arange(3),
    ],
)
def test_every_bit_of_every_kind_of_tensor_comes_back(folder, tensor):
    TensorCache(folder).put("k", KEY, {"x": tensor})
    assert same(TensorCache(folder).get("k", KEY, never), {"x": tensor})


def test_tensors_that_share_memory_are_kept_too(folder):
    block = torch.randn(4, 4)
    shared = {"a": block, "b": block, "row": block[0], "turned": block.T}
    assert same(TensorCache(folder).get("k", KEY, lambda: shared), shared)
    assert same(TensorCache(folder).get("k", KEY, never), shared)


def test_the_first_answer_is_of_the_same_kind_as_all_later_ones(folder):
    def graph():
        return {"x": torch.ones(2, requires_grad=True) * 2}

    first = TensorCache(folder).get("k", KEY, graph)
    later = TensorCache(folder).get("k", KEY, never)
    assert not first["x"].requires_grad
    assert same(first, later)


def test_a_mapping_that_its_owner_empties_is_kept_full(folder):
    cache = TensorCache(folder)
    given = some()
    cache.put("k", KEY, given)
    given.clear()
    cache.get("k", KEY, never).clear()
    assert same(cache.get("k", KEY, never), some())
    assert same(cache.find("k", KEY), some())


def test_nothing_made_is_kept_as_nothing_and_not_made_again(folder):
    assert TensorCache(folder).get("k", KEY, dict) == {}
    assert TensorCache(folder).get("k", KEY, never) == {}


def test_when_making_fails_nothing_is_kept_and_the_lock_is_free(folder):
    def fails():
        raise ZeroDivisionError

    cache = TensorCache(folder)
    with pytest.raises(ZeroDivisionError):
        cache.get("k", KEY, fails)
    assert same(cache.get("k", KEY, some), some())


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("harm", [cut, flip, lambda _: b"", lambda _: b"hello" * 9])
def test_a_damaged_file_is_reported_once_and_made_anew(folder, harm):
    path = TensorCache(folder).put("k", KEY, some())
    path.write_bytes(harm(path.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged") as said:
        found = TensorCache(folder).get("k", KEY, some)
    assert len(said) == 1
    assert str(path) in str(said[0].message)
    assert same(found, some())
    assert same(TensorCache(folder).get("k", KEY, never), some())


def test_a_file_under_anothers_name_is_not_taken_for_his(folder):
    cache = TensorCache(folder)
    other = cache.put("k", {**KEY, "layer": 4}, {"x": torch.zeros(1)})
    cache.path("k", KEY).write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="belongs to another key"):
        assert TensorCache(folder).find("k", KEY) is None


def test_an_unwritable_folder_is_a_warning_and_no_failure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = TensorCache(tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert same(cache.get("k", KEY, some), some())
    assert same(cache.get("k", KEY, never), some())
    with pytest.warns(UserWarning, match="cannot keep"):
        cache.put("other", KEY, some())
    assert same(cache.find("other", KEY), some())


def test_a_folder_in_the_place_of_a_file_is_worked_around(folder):
    cache = TensorCache(folder)
    cache.path("k", KEY).mkdir(parents=True)
    with pytest.warns(UserWarning, match="is damaged|cannot keep"):
        assert same(cache.get("k", KEY, some), some())


def test_little_memory_costs_reading_and_never_a_result(folder):
    cache = TensorCache(folder, memory=0)
    for layer in range(3):
        cache.put("k", {"layer": layer}, {"x": torch.full((100,), float(layer))})
    for layer in range(3):
        assert cache.get("k", {"layer": layer}, never)["x"][0] == layer


def test_keys_tells_what_each_file_is_and_which_are_damaged(folder):
    cache = TensorCache(folder)
    good = cache.put("k", KEY, some())
    bad = cache.put("k", {"layer": 9}, some())
    foreign = good.parent / "foreign.safetensors"
    foreign.write_bytes(b"not a tensor file")
    bad.write_bytes(flip(bad.read_bytes()))
    assert cache.keys("k") == {good: KEY, bad: None, foreign: None}
    assert cache.keys("nothing") == {}


def test_the_folder_is_the_one_that_the_environment_names(monkeypatch, tmp_path):
    assert TensorCache().folder == tmp_path / "cache"  # from conftest
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KEDIT_CACHE", "~/elsewhere")
    assert default_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("KEDIT_CACHE")
    assert default_folder().is_absolute()
    assert "kedit" in default_folder().parts


def test_two_who_want_the_same_at_once_make_it_once(folder):
    made, both_here = [], Barrier(2)

    def slowly():
        made.append(1)
        sleep(0.2)
        return some()

    def want(_):
        both_here.wait(10)
        return TensorCache(folder).get("k", KEY, slowly)

    with ThreadPoolExecutor(2) as pool:
        assert all(same(found, some()) for found in pool.map(want, range(2)))
    assert made == [1]


def test_reading_a_kept_file_is_logged_and_printed_nowhere(folder, caplog, capsys):
    TensorCache(folder).put("k", KEY, some())
    with caplog.at_level(logging.DEBUG, "kedit_core.cache"):
        TensorCache(folder).get("k", KEY, never)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["read"]
    assert capsys.readouterr() == ("", "")


def test_a_path_of_a_kind_lies_below_its_folder(folder):
    path = TensorCache(folder).path("moments", KEY)
    assert path.parent == Path(folder) / "moments"
