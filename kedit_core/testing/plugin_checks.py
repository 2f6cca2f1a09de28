"""What the plugin module, the method's card and the plugin's further hooks must be like."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from inspect import signature
from typing import Any

import pytest

from kedit_core.config import as_mapping, load_config
from kedit_core.editor import Editor
from kedit_core.errors import ConfigError
from kedit_core.metrics import DEFAULT
from kedit_core.reports import Score
from kedit_core.requests import EditBatch
from kedit_core.testing.bench import Bench, Candidate
from kedit_core.testing.ears import listening
from kedit_core.testing.states import differing, state_of

_HEAVY = ("torch", "transformers")
_FOREIGN = "nobody:has-this"
_NOTHING = "NoneType and imports nothing heavy"
_ALONE = """
import importlib, inspect, sys
sys.path[:] = {path!r}
plugin = importlib.import_module({module!r})
hook, given = getattr(plugin, {hook!r}), {given}
said = hook(**{{name: given[name] for name in inspect.signature(hook).parameters}})
heavy = [name for name in {heavy!r} if name in sys.modules]
sys.stdout.write(f"{{type(said).__name__}} and imports {{' and '.join(heavy) or 'nothing heavy'}}")
"""


class PluginChecks:
    """Checks that need no edit."""

    def test_the_plugin_can_be_used(self, candidate: Candidate) -> None:
        """The name is that of the entry point, and every hook takes only arguments of the contract."""
        row = candidate.row
        known = ", ".join(candidate.plugins.methods()) or "none"
        assert row is not None, f"no plugin {candidate.method!r} was found (methods: {known})"
        assert not row.problem, f"plugin {candidate.method!r} is broken: {row.problem}"
        assert row.info is not None, f"plugin {candidate.method!r} has no method_info"

    def test_importing_the_plugin_imports_no_torch(self, candidate: Candidate) -> None:
        """Neither the plugin module nor this call imports torch or transformers."""
        said = _alone(candidate, "method_info", {})
        assert said == "MethodInfo and imports nothing heavy", f"method_info returns {said}"

    def test_the_configuration_is_strict(self, candidate: Candidate) -> None:
        """Every setting has a default, an unknown one is refused, and JSON gives back what was set."""
        cls = candidate.info.config
        try:
            default: Any = cls()
        except TypeError as error:
            raise AssertionError(f"{cls.__name__}() lacks a default: {error}") from None
        with pytest.raises(ConfigError):
            load_config(cls, {"a_setting_that_no_method_has": 1})
        for config in (default, load_config(cls, candidate.config)):
            written = json.loads(json.dumps(as_mapping(config)))
            read = load_config(cls, written)
            assert read == config, f"{cls.__name__} reads {written} back as {read}, not {config}"

    def test_a_source_of_somebody_else_is_left_alone(self, candidate: Candidate) -> None:
        """A source that is not this plugin's gives None at once, without importing torch."""
        _skip_without(candidate, "open_model")
        said = _alone(candidate, "open_model", {"source": _FOREIGN, "dtype": None, "device": None})
        assert said == _NOTHING, f"asked for {_FOREIGN!r}, open_model returns {said}"

    def test_a_request_source_of_somebody_else_is_left_alone(self, candidate: Candidate) -> None:
        """A request source that is not this plugin's gives None, so that others are asked."""
        _skip_without(candidate, "read_requests")
        found = candidate.plugins.module(candidate.method).read_requests(_FOREIGN)
        assert found is None, f"asked for the requests {_FOREIGN!r}, it gives {found!r}"

    def test_registering_commands_imports_no_torch(self, candidate: Candidate) -> None:
        """Nothing heavy is imported before a command runs."""
        _skip_without(candidate, "register_commands")
        said = _alone(
            candidate, "register_commands", "{'cli': importlib.import_module('typer').Typer()}"
        )
        assert said == _NOTHING, f"register_commands returns {said}"

    def test_only_metrics_that_were_asked_for_are_computed(self, bench: Bench) -> None:
        """Only metrics that were asked for are computed."""
        names = sorted({score.metric for score in _judged(bench, bench.editor(), {})})
        assert not names, f"asked for no metric, evaluate gives {', '.join(names)}"

    def test_judging_only_reads(self, bench: Bench) -> None:
        """Judging only reads the model, and prints, warns of and logs nothing."""
        _skip_without(bench.candidate, "evaluate")
        editor = bench.editor()
        before = state_of(editor)
        with listening() as heard:
            _judged(bench, editor, _Everything.fromkeys(DEFAULT, {}))
        changed = differing(before, state_of(editor))
        assert not changed, f"evaluate left behind other {changed}"
        heard.check("it")


class _Everything(dict[str, Mapping[str, Any]]):
    """Metrics to compute: whatever a plugin knows, it was asked for."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: str) -> Mapping[str, Any]:
        return {}


def _judged(bench: Bench, editor: Editor, metrics: Mapping[str, Mapping[str, Any]]) -> list[Score]:
    """Return what the plugin's own ``evaluate`` says, asked for these metrics."""
    candidate = bench.candidate
    _skip_without(candidate, "evaluate")
    given = {
        "model": editor.model,
        "tokenizer": editor.tokenizer,
        "batch": EditBatch(requests=bench.requests[:2]),
        "deltas": (),
        "baseline": editor.baseline,
        "metrics": metrics,
    }
    hook = candidate.plugins.module(candidate.method).evaluate
    return list(hook(**{name: given[name] for name in signature(hook).parameters}) or ())


def _skip_without(candidate: Candidate, hook: str) -> None:
    if not candidate.implements(hook):
        pytest.skip(f"the plugin has no {hook}")


def _alone(candidate: Candidate, hook: str, given: object) -> str:
    """Call a hook in a new process and return what kind of thing it gave and what was imported."""
    module = candidate.plugins.module(candidate.method).__name__
    code = _ALONE.format(path=sys.path, module=module, hook=hook, given=given, heavy=_HEAVY)
    return in_a_new_process(candidate, code)


def in_a_new_process(candidate: Candidate, code: str) -> str:
    """Run code that imports the plugin in a new process, and return what it writes to stdout.

    Skips when no other process could import the plugin.
    """
    module = candidate.plugins.module(candidate.method).__name__
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if f"No module named {module!r}" in done.stderr:
        pytest.skip(f"{module} is no module that a new process could import")
    assert done.returncode == 0, f"in a process of its own, {module} fails: {done.stderr[-500:]}"
    return done.stdout
