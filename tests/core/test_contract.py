"""The contract of methods: good ones keep it, every check can fail, and every sentence has its check."""

import inspect
import re
from pathlib import Path
from unittest.mock import patch

import pytest
from transformers import LlamaForCausalLM

from kedit_core import hookspecs
from kedit_core.testing import MethodContract, checks
from kedit_core.testing.bench import Bench, Candidate
from kedit_core.testing.states import same_process
from tests.core import bad_methods


class TestWriter(MethodContract):
    method = "writer"
    tolerance = 0.2  # it is small, not good

    def plugins(self):
        return bad_methods.only(bad_methods.writer())


class TestMemory(MethodContract):
    method = "memory"

    def plugins(self):
        return bad_methods.only(bad_methods.memory())


@pytest.fixture
def fails_on(tmp_path, monkeypatch, request):
    """Return what runs one check on plugins and returns its complaint, or None when it is content."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(check, plugins):
        test = getattr(MethodContract(), check)
        (name,) = (row.name for row in plugins.rows())
        candidate = Candidate(method=name, config=None, tolerance=0.1, plugins=plugins)
        models = request.config.cache.mkdir("kedit")
        wants = "bench" in inspect.signature(test).parameters
        # What a bad method leaves in the process or in a class is taken out, or it would fail others.
        with same_process(), patch.object(LlamaForCausalLM, "forward", LlamaForCausalLM.forward):
            try:
                test(Bench(candidate, "llama", models, tmp_path) if wants else candidate)
            except (AssertionError, pytest.fail.Exception) as error:
                return str(error)
            except pytest.skip.Exception as error:
                return f"skipped: {error}"
        return None

    return run


@pytest.mark.parametrize("bad", bad_methods.BAD, ids=lambda bad: f"{bad.check[5:]}-{bad.name}")
def test_each_check_fails_on_its_bad_method(bad, fails_on, tmp_path):
    complaint = fails_on(bad.check, bad.plugins(tmp_path))
    assert complaint is not None
    assert re.search(bad.says, complaint), complaint


def test_every_check_has_a_bad_method_that_it_fails_on():
    assert {check.name for check in checks()} == {bad.check for bad in bad_methods.BAD}


@pytest.mark.parametrize(
    "check",
    sorted({bad.check for bad in bad_methods.BAD if "from_file" in str(bad.plugins)}),
)
def test_a_plugin_in_a_file_passes_the_checks_that_read_files(check, fails_on, tmp_path):
    assert fails_on(check, bad_methods.from_file(tmp_path)) is None


def test_a_writer_in_a_file_that_keeps_nothing_passes_the_check_of_a_new_process(
    fails_on, tmp_path
):
    check = "test_a_new_process_gives_the_same_delta"
    assert fails_on(check, bad_methods.memo(tmp_path, keeps=False)) is None


def test_a_cache_whose_keys_say_the_model_passes_the_check_of_shared_folders(fails_on):
    check = "test_models_that_share_a_cache_folder_share_nothing_else"
    plugins = bad_methods.only(bad_methods.cached(bad_methods.of_request_and_model))
    assert fails_on(check, plugins) is None


# --- sentences and checks ------------------------------------------------------------------------

HELD_BY_CORE = {
    "The batch comes without paraphrases and probes: nobody trains on the test.": (
        "core/test_editor.py::test_methods_see_requests_without_their_probes"
    ),
    "A metric that lacks its data is absent, never 0.": (
        "core/test_metrics.py::test_a_metric_that_lacks_its_data_is_absent_and_counted"
    ),
    "A metric that is named here and finds no data is counted as missing, not refused.": (
        "core/test_metrics.py::test_a_metric_that_a_plugin_names_is_counted_where_it_finds_no_data"
    ),
    "The implementation is no generator function: its generator is never None and would shadow all others.": (
        "core/test_plugins.py::"
        "test_a_broken_plugin_is_a_row_and_an_error_when_used_and_disturbs_no_other"
    ),
}
"""What core sees to, or tests of its own implementation, with the test that shows it."""


def sentences():
    """Return every sentence under Contract of every hook."""
    found = []
    for hook in vars(hookspecs).values():
        if hasattr(hook, "kedit_spec"):
            contract = inspect.getdoc(hook).partition("Contract:\n")[2]
            items = re.split(r"^ *- ", contract, flags=re.MULTILINE)[1:]
            found += [" ".join(item.split()) for item in items]
    return found


def test_every_sentence_of_the_contract_has_its_one_check_and_every_check_its_sentence():
    checked = [check.sentence for check in checks()]
    assert sorted(sentences()) == sorted([*checked, *HELD_BY_CORE])
    assert len(set(checked)) == len(checked)


@pytest.mark.parametrize("sentence", HELD_BY_CORE)
def test_what_core_holds_is_shown_by_a_test_of_that_name(sentence):
    file, _, name = HELD_BY_CORE[sentence].partition("::")
    text = (Path(__file__).parent.parent / file).read_text(encoding="utf-8")
    assert f"def {name}(" in text
