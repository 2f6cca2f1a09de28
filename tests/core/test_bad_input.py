"""Whatever somebody gives to kedit: one readable sentence, exit 2, nothing changed, nothing lost."""

import re
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from kedit_core import Editor, EditRequest
from kedit_core.delta_files import load_deltas
from kedit_core.digests import state_digest
from kedit_core.errors import DeltaError

spec = spec_from_file_location("bad_inputs", Path(__file__).with_name("bad_inputs.py"))
bad_inputs = sys.modules["bad_inputs"] = module_from_spec(spec)
spec.loader.exec_module(bad_inputs)

SECTION = (
    "command line",
    "configuration",
    "request files",
    "requests",
    "models",
    "delta files",
    "the machine",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    bad_inputs.build(folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    bad_inputs.install(folder)
    return folder


@pytest.fixture
def scene(built, site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scene"
    shutil.copytree(built, folder)
    yield bad_inputs.Scene(folder)
    for name in bad_inputs.METHODS:
        sys.modules.pop(f"kedit_bad_{name}", None)


@pytest.mark.parametrize(
    "case", bad_inputs.CASES, ids=lambda case: f"{case.group}: {case.name}".replace(" ", "-")
)
def test_a_bad_input_meets_one_readable_sentence_and_changes_nothing(case, scene):
    found = bad_inputs.answer(case, scene)
    assert found.code == case.code, found.err
    assert re.match(case.says, found.err), found.err
    assert "Traceback" not in found.err
    assert found.changed == tuple(sorted(case.writes))
    assert not found.edited
    if case.code == 2:
        assert found.out == ""
        assert found.err.startswith("kedit: ")
        assert len(found.err.splitlines()) == 1
        assert len(found.err) < 600


def test_every_part_of_the_list_is_there():
    assert tuple(dict.fromkeys(case.group for case in bad_inputs.CASES)) == SECTION
    names = [(case.group, case.name) for case in bad_inputs.CASES]
    assert len(names) == len(set(names))


def test_what_was_edited_before_an_interrupt_is_saved_and_nothing_more(scene):
    (case,) = (one for one in bad_inputs.CASES if one.name.startswith("Ctrl-C"))
    assert bad_inputs.answer(case, scene).code == 130
    (delta,) = load_deltas(scene.out)
    assert delta.requests[0].subject == "land0"
    editor = scene.editor()
    before = state_digest(editor.model)
    editor.load(scene.out)
    assert state_digest(editor.model) != before
    editor.undo()
    assert state_digest(editor.model) == before


def test_one_wrong_request_of_many_is_said_before_any_edit_is_made(scene):
    good, long = dict(bad_inputs.FACT), {**bad_inputs.FACT, "prompt": "the " * 40 + "{} is"}
    command = scene.requests("\n".join(map(bad_inputs.json.dumps, (good, long))))
    code, out, err = bad_inputs.ran(command)
    assert (code, out) == (2, "")
    assert "longer than the model's context" in err
    assert not scene.out.exists()


def test_a_refused_file_leaves_the_edits_in_force_as_they_are(scene):
    path = scene.delta()
    editor = scene.editor()
    editor.edit(EditRequest(**{**bad_inputs.FACT, "subject": "land1"}))
    before, held = state_digest(editor.model), editor.deltas
    path.write_bytes(path.read_bytes()[:-1] + b"\x40")
    with pytest.raises(DeltaError, match="not what was saved"):
        editor.load(path)
    assert state_digest(editor.model) == before
    assert editor.deltas == held


def test_opening_a_model_says_nothing_and_leaves_transformers_logging_alone(scene, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    Editor.from_pretrained(scene.model, "push")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("drift,reliability.exact", {"drift": {}, "reliability.exact": {}}),
        (" drift , fluency:tokens=5:seed=3", {"drift": {}, "fluency": {"tokens": 5, "seed": 3}}),
        ("perplexity:text=/a/b:c.txt", {"perplexity": {"text": "/a/b:c.txt"}}),
        (
            'perplexity:text="/a,b:window=2.txt",drift',
            {"perplexity": {"text": "/a,b:window=2.txt"}, "drift": {}},
        ),
        ("perplexity:text=C:\\x.txt:window=8", {"perplexity": {"text": "C:\\x.txt", "window": 8}}),
    ],
)
def test_metrics_may_name_files_with_commas_and_colons(scene, said, wanted, monkeypatch):
    seen = []
    evaluate = Editor.evaluate

    def watched(editor, requests, metrics=None):
        seen.append(metrics)
        return evaluate(editor, requests, ["drift"])

    monkeypatch.setattr(Editor, "evaluate", watched)
    code, _, err = bad_inputs.ran([*scene.load(scene.delta()), "--metrics", said])
    assert (code, err) == (0, "")
    assert seen == [wanted, wanted]
