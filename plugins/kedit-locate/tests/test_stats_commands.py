"""``kedit locate stats``, run as ``kedit`` runs it, on a tiny model folder."""

import json
import shutil
import warnings
from pathlib import Path

import numpy
import pytest
import torch

from kedit_core import TensorCache, Weights, layout_of
from kedit_core.cli import main
from kedit_core.models import open_with_transformers
from kedit_core.progress import Progress
from kedit_locate.config import Context, Statistics
from kedit_locate.moments import metric_of, moments
from kedit_locate.shards import Shelf
from kedit_locate.templates import context_prefixes

QUICK = ("--tokens", "200", "--length", "16")
SAME = Statistics(tokens=200, length=16)


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    path = tmp_path / "model"
    tiny("gpt2", dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def kedit(capsys):
    """Return the runner of a command: exit code, what it printed, what it said on stderr."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["locate", "stats", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


@pytest.fixture
def rows_of(kedit):
    """Return the runner of a command that must succeed: the rows it shows."""

    def run(*arguments):
        code, out, err = kedit(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def write_npz(path, matrix, count):
    numpy.savez(
        path,
        **{
            "mom2.constructor": "SecondMoment",
            "mom2.mom2": (matrix * count).astype("float32"),
            "mom2.count": count,
            "sample_size": 1000,
        },
    )


def definite(width=24):
    factor = numpy.random.default_rng(0).normal(size=(width, width))
    return factor @ factor.T / width + numpy.eye(width)


def test_build_collects_the_layers_and_list_and_verify_show_them(folder, rows_of):
    built = rows_of("build", folder, "--layers", "0,2", *QUICK)
    assert [row["module"] for row in built] != []
    assert {row["module"] for row in built} == {f"transformer.h.{n}.mlp.c_proj" for n in (0, 2)}
    for row in built:
        assert (row["width"], row["tokens"], row["damaged"]) == (24, 208, False)
        assert "self-sampled" in row["corpus"]
    assert rows_of("list") == built
    assert rows_of("verify") == built


def test_what_build_keeps_is_what_an_edit_reads(folder, rows_of, diary):
    rows_of("build", folder, "--layers", "0-1", *QUICK)
    model, tokenizer = open_with_transformers(folder, None, None)
    downs = [layout_of(model).down_of(layer) for layer in (0, 1)]
    found = moments(model, tokenizer, downs, SAME, Weights(model), TensorCache(), diary)
    assert [moment.count for moment in found] == [208, 208]
    assert not diary.tasks


def test_build_from_a_file_of_text(folder, rows_of, tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_text("The capital of Norway is Oslo. " * 30, encoding="utf-8")
    (row,) = rows_of("build", folder, "--layers", "1", "--corpus", corpus, *QUICK)
    assert row["corpus"].startswith("file ")
    assert row["tokens"] == 200


def test_the_table_names_what_is_kept(folder, kedit):
    code, out, _ = kedit("list")
    assert code == 0
    assert "nothing is kept" in out
    assert kedit("build", folder, "--layers", "1", *QUICK)[0] == 0
    code, out, _ = kedit("list")
    assert code == 0
    assert "208" in out


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "foreign"])
def test_verify_exits_1_on_a_damaged_file_and_names_it(folder, rows_of, kedit, harm):
    (row,) = rows_of("build", folder, "--layers", "1", *QUICK)
    path = TensorCache().path("moments", next(iter(TensorCache().keys("moments").values())))
    bits = path.read_bytes()
    harmed = {
        "flip": bits[:-5] + bytes([bits[-5] ^ 1]) + bits[-4:],
        "cut": bits[: len(bits) // 2],
        "empty": b"",
        "foreign": b"a text that somebody put here",
    }
    path.write_bytes(harmed[harm])
    code, out, err = kedit("verify", "--json")
    assert code == 1
    assert [(one["file"], one["damaged"]) for one in json.loads(out)] == [(row["file"], True)]
    assert "Traceback" not in err
    assert kedit("list")[0] == 0


def test_a_file_of_another_kind_or_name_among_the_moments_is_damage(folder, rows_of, kedit):
    (row,) = rows_of("build", folder, "--layers", "1", *QUICK)
    model, tokenizer = open_with_transformers(folder, None, None)
    cache = TensorCache()
    context_prefixes(model, tokenizer, Context(count=1), 0, Weights(model), cache)
    (other,) = cache.keys("prefixes")
    shutil.copy(other, cache.folder / "moments" / other.name)
    shutil.copy(row["file"], cache.folder / "moments" / "renamed.safetensors")
    code, out, _ = kedit("verify", "--json")
    assert code == 1
    damaged = {one["file"] for one in json.loads(out) if one["damaged"]}
    assert {name.rpartition("/")[2] for name in damaged} == {other.name, "renamed.safetensors"}


def test_an_unfinished_pass_is_listed_and_verified(folder, rows_of, kedit, monkeypatch):
    long = ("--tokens", "600", "--length", "16")
    find = Shelf.find

    def interrupted(self, path, shard):
        if shard == (1, 2):
            raise KeyboardInterrupt
        return find(self, path, shard)

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "find", interrupted)
        assert kedit("build", folder, "--layers", "1", *long)[0] != 0
    (row,) = rows_of("list")
    assert (row["shard"], row["damaged"]) == ("1 of 2", False)
    assert 0 < row["tokens"] < 600
    assert "unfinished" in kedit("list")[1]
    Path(row["file"]).write_bytes(b"broken")
    code, out, _ = kedit("verify", "--json")
    assert code == 1
    assert json.loads(out)[0]["damaged"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # shown on stderr
        code, _, err = kedit("build", folder, "--layers", "1", *long)
    assert code == 0
    assert "damaged" in err
    assert [one["shard"] for one in rows_of("verify")] == [""]


def test_import_keeps_the_moment_of_romes_code_and_edits_use_it(folder, rows_of, tmp_path, diary):
    matrix = definite()
    write_npz(tmp_path / "stats.npz", matrix, 5000)
    row = rows_of("import", folder, tmp_path / "stats.npz", "--layer", "1", *QUICK)[0]
    assert (row["tokens"], row["width"], row["damaged"]) == (5000, 24, False)
    model, tokenizer = open_with_transformers(folder, None, None)
    down = layout_of(model).down_of(1)
    (found,) = moments(model, tokenizer, [down], SAME, Weights(model), TensorCache(), diary)
    assert not diary.tasks
    torch.testing.assert_close(found.matrix, torch.from_numpy(matrix).float(), rtol=1e-6, atol=1e-6)


def test_an_import_counts_even_after_an_edit_has_factorised_other_statistics(
    folder, rows_of, tmp_path
):
    model, tokenizer = open_with_transformers(folder, None, None)
    down = layout_of(model).down_of(1)
    metric_of(model, tokenizer, down, SAME, Weights(model), TensorCache(), Progress())
    matrix = definite()
    write_npz(tmp_path / "stats.npz", matrix, 5000)
    rows_of("import", folder, tmp_path / "stats.npz", "--layer", "1", *QUICK)
    found = metric_of(model, tokenizer, down, SAME, Weights(model), TensorCache(), Progress())
    expected = torch.linalg.cholesky(torch.from_numpy(matrix))
    torch.testing.assert_close(found.cholesky, expected, rtol=1e-5, atol=1e-5)


def test_building_more_layers_leaves_an_imported_one_alone(folder, rows_of, tmp_path):
    write_npz(tmp_path / "stats.npz", definite(), 5000)
    rows_of("import", folder, tmp_path / "stats.npz", "--layer", "1", *QUICK)
    built = rows_of("build", folder, "--layers", "0-1", *QUICK)
    assert sorted(row["tokens"] for row in built) == [208, 5000]


def _bad(path, kind):
    match kind:
        case "npy":
            with path.open("wb") as file:
                numpy.save(file, numpy.eye(24))
        case "empty":
            path.write_bytes(b"")
        case "broken zip":
            path.write_bytes(b"PK\x03\x04 and nothing after it")
        case "text":
            path.write_text("this is no zip")
        case "other names":
            numpy.savez(path, mom2=numpy.eye(24))
        case "count is a list":
            numpy.savez(path, **{"mom2.mom2": numpy.eye(24), "mom2.count": numpy.array([1, 2])})
        case "no tokens":
            numpy.savez(path, **{"mom2.mom2": numpy.eye(24), "mom2.count": 0})
        case "words":
            numpy.savez(path, **{"mom2.mom2": numpy.array([["a"]]), "mom2.count": 3})
        case "not finite":
            numpy.savez(path, **{"mom2.mom2": numpy.full((24, 24), numpy.nan), "mom2.count": 3})
        case "oblong":
            numpy.savez(path, **{"mom2.mom2": numpy.ones((24, 3)), "mom2.count": 3})
        case "zero":
            numpy.savez(path, **{"mom2.mom2": numpy.zeros((24, 24)), "mom2.count": 3})
        case "other width":
            numpy.savez(path, **{"mom2.mom2": numpy.eye(7), "mom2.count": 3})


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "npy",
        "empty",
        "broken zip",
        "text",
        "other names",
        "count is a list",
        "no tokens",
        "words",
        "not finite",
        "oblong",
        "zero",
        "other width",
    ],
)
def test_a_file_that_is_no_statistics_is_refused_in_one_sentence(folder, kedit, tmp_path, kind):
    path = tmp_path / "stats.npz"
    _bad(path, kind)
    code, out, err = kedit("import", folder, path, "--layer", "1", *QUICK)
    assert code == 2
    assert err.startswith("kedit: ")
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not TensorCache().keys("moments")


@pytest.mark.parametrize("layers", ["8-3", "²", "", "1-", "-1", "1,,2", "one", "7", "0-3"])
def test_layers_that_are_none_are_refused_in_one_sentence(folder, kedit, layers):
    code, out, err = kedit("build", folder, f"--layers={layers}", *QUICK)
    assert code == 2
    assert err.startswith("kedit: ")
    assert "layer" in err
    assert not out


def test_blanks_between_layers_do_not_matter(folder, rows_of):
    assert len(rows_of("build", folder, "--layers", "0, 2", *QUICK)) == 2


def test_a_model_that_is_not_there_is_the_users_error(kedit, tmp_path):
    code, _, err = kedit("build", tmp_path / "nowhere", "--layers", "0")
    assert code == 2
    assert err.startswith("kedit: ")
