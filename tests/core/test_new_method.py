"""``kedit new-method``: the template under a name of one's own."""

import ast
import json
import sys
import tomllib
from importlib import import_module

import pytest

from kedit_core import Editor, EditRequest, KeditError, Plugins, TensorCache
from kedit_core.cli import main
from kedit_core.template_files import names_for, write_template
from kedit_core.testing import byte_level_tokenizer, tiny_model


def run(capsys, *arguments):
    code = 0
    try:
        main(["new-method", *map(str, arguments)])
    except SystemExit as end:
        code = end.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_name_gives_all_other_names():
    names = names_for("path-finder")
    assert (names.distribution, names.package) == ("kedit-path-finder", "kedit_path_finder")
    assert (names.identifier, names.words) == ("path_finder", "PathFinder")


def test_the_copy_is_whole_valid_and_speaks_of_itself_alone(tmp_path):
    folder = tmp_path / "mine"
    made = write_template(names_for("anchor"), folder)
    texts = {path.relative_to(folder).as_posix(): path.read_text() for path in made}
    assert {"pyproject.toml", "kedit_anchor/_anchor.py", "tests/test_contract.py"} <= texts.keys()
    for path, text in texts.items():
        assert "my_" not in text + path
        assert "my-method" not in text
        assert "MyMethod" not in text
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["entry-points"]["kedit"] == {"anchor": "kedit_anchor"}
    assert project["name"] == "kedit-anchor"


def test_the_copy_asks_for_this_core(tmp_path):
    import kedit_core

    write_template(names_for("anchor"), tmp_path / "mine")
    project = tomllib.loads((tmp_path / "mine" / "pyproject.toml").read_text())["project"]
    major, minor = kedit_core.__version__.split(".")[:2]
    assert f"kedit-core>={major}.{minor},<{major}.{int(minor) + 1}" in project["dependencies"]


@pytest.mark.parametrize(
    "name",
    ["class", "encode", "torch", "config", "weights", "contract", "my-method-2", "not-my-method"],
)
def test_a_copy_edits_whatever_word_its_name_is(tmp_path, monkeypatch, name):
    """The name of a method may be a word of Python, of the template, or one of its arguments."""
    names = names_for(name)
    made = write_template(names, tmp_path / "mine")
    assert len(made) == 8
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    plugins = Plugins()
    assert plugins.register(import_module(names.package)).name == name
    editor = Editor(
        tiny_model("llama"),
        byte_level_tokenizer(bos=False),
        name,
        {"steps": 1},
        plugins=plugins,
        cache=TensorCache(tmp_path / "cache"),
    )
    fact = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
    assert editor.edit(fact).method == name
    ast.parse((tmp_path / "mine" / names.package / f"_{names.identifier}.py").read_text())


@pytest.mark.parametrize("name", ["core", "rome"])
def test_a_name_whose_package_is_installed_is_refused(name):
    if name == "rome":
        pytest.importorskip("kedit_rome")
    with pytest.raises(KeditError, match="installed already"):
        names_for(name)


def test_a_name_that_never_ends_is_one_sentence(capsys):
    code, _, said = run(capsys, "n" * 300)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "40 are enough" in said


@pytest.mark.parametrize("name", ["", "Anchor", "2fast", "a_b", "a--b", "a-", "a b", "../a"])
def test_a_name_that_no_package_can_have_is_refused(name):
    with pytest.raises(KeditError, match="lower-case"):
        names_for(name)


def test_the_prefix_is_added_once(capsys, tmp_path):
    code, _, said = run(capsys, "kedit-anchor", "--out", tmp_path / "mine")
    assert (code, said) == (
        2,
        "kedit: leave out 'kedit-': the package of 'anchor' gets it by itself\n",
    )


def test_what_is_there_already_stays_as_it_is(capsys, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    code, _, said = run(capsys, "anchor", "--out", folder)
    assert code == 2
    assert "exists already" in said
    assert [path.name for path in folder.iterdir()] == ["notes"]


def test_a_folder_that_cannot_be_made_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, said = run(capsys, "anchor", "--out", tmp_path / "file" / "mine")
    assert code == 2
    assert len(said.splitlines()) == 1


def test_a_copy_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.move", fail)
    with pytest.raises(KeditError, match="No space left"):
        write_template(names_for("anchor"), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_was_made_and_what_comes_next(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    code, said, _ = run(capsys, "anchor")
    assert code == 0
    assert "pip install -e" in said
    assert (tmp_path / "kedit-anchor" / "kedit_anchor" / "__init__.py").is_file()
    assert "torch" not in set(sys.modules) - before
    code, said, _ = run(capsys, "buoy", "--json")
    document = json.loads(said)
    assert (document["method"], document["folder"]) == ("buoy", "kedit-buoy")
    assert "kedit-buoy/pyproject.toml" in document["files"]
