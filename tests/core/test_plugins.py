import inspect
import re
import sys
from textwrap import dedent
from types import ModuleType

import pytest

from kedit_core import hookimpl, hookspecs
from kedit_core.errors import (
    BrokenPluginError,
    KeditError,
    PluginConflictError,
    UnknownMethodError,
)
from kedit_core.methods import MethodInfo
from kedit_core.plugins import Plugins

COMPUTE = ("model", "tokenizer", "batch", "config", "previous", "weights", "cache", "progress")

HOOKS = [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "kedit_spec")]

HEAD = """
import sys
from kedit_core import MethodInfo, hookimpl
"""

INFO = """
@hookimpl
def method_info():
    return MethodInfo(name="mine", summary="it is mine", kind="weights")
"""

METHOD = f"""{INFO}
@hookimpl
def compute_delta(batch):
    return "computed"
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return what installs a distribution with one plugin: a real .dist-info folder on sys.path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def put(code, name="mine", dist="kedit-mine", module="", value=""):
        folder = tmp_path / dist
        module = module or dist.replace("-", "_")
        info = folder / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(HEAD + dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        names = [name] if isinstance(name, str) else name
        lines = "".join(f"{one} = {value or module}\n" for one in names)
        (info / "entry_points.txt").write_text(f"[kedit]\n{lines}")
        sys.path.insert(0, str(folder))

    yield put
    for name in set(sys.modules) - before:
        if name.startswith(("kedit_mine", "kedit_other")):
            del sys.modules[name]


def row(name="mine"):
    return {row.name: row for row in Plugins.installed().rows()}.get(name)


def module_of(name="mine", **functions):
    module = ModuleType(name)
    for hook, function in functions.items():
        setattr(module, hook, function)
    return module


def method_of(name, **functions):
    @hookimpl
    def method_info():
        return MethodInfo(name=name, summary="s", kind="weights")

    @hookimpl
    def compute_delta(batch):
        return f"computed by {name}"

    made = {"method_info": method_info, "compute_delta": compute_delta}
    return module_of(name, **{**made, **functions})


def compute(plugins, method):
    return plugins.call("compute_delta", method, **dict.fromkeys(COMPUTE))


# --- what is found -----------------------------------------------------------------------------


def test_an_installed_method_is_found_with_its_card_its_hooks_and_its_package(install):
    install(METHOD)
    found = row()
    assert (found.package, found.problem) == ("kedit-mine 1.0", "")
    assert found.hooks == ("compute_delta", "method_info")
    assert found.info.summary == "it is mine"
    plugins = Plugins.installed()
    assert "mine" in plugins.methods()
    assert plugins.info("mine") == found.info
    assert compute(plugins, "mine") == "computed"


def test_an_observer_is_no_method(install):
    install("@hookimpl\ndef evaluate(model):\n    return None\n", name="watching")
    found = row("watching")
    assert (found.info, found.problem, found.hooks) == (None, "", ("evaluate",))
    plugins = Plugins.installed()
    assert "watching" not in plugins.methods()
    with pytest.raises(UnknownMethodError):
        plugins.info("watching")


def test_an_unknown_method_is_a_lookup_error_that_offers_the_closest(install):
    install(METHOD)
    with pytest.raises(LookupError, match=r"unknown method 'mien' .*mine.*did you mean 'mine'"):
        Plugins.installed().info("mien")


def test_the_environment_can_leave_plugins_out(install, monkeypatch):
    install(METHOD)
    install("raise ImportError", name="other", dist="kedit-other")
    monkeypatch.setenv("KEDIT_DISABLE_PLUGINS", " mine ,other,")
    names = [found.name for found in Plugins.installed().rows()]
    assert "mine" not in names
    assert "other" not in names
    assert "kedit_other" not in sys.modules


@pytest.mark.parametrize("value", ["", ",", "nobody"])
def test_leaving_out_nobody_leaves_out_nobody(install, monkeypatch, value):
    install(METHOD)
    monkeypatch.setenv("KEDIT_DISABLE_PLUGINS", value)
    assert row().info is not None


# --- what is broken ----------------------------------------------------------------------------


BROKEN = {
    "import raises": ("import nowhere_to_be_found", "import fails: ModuleNotFoundError: .*nowhere"),
    "import raises oddly": ("raise ValueError('a\\nb')", "import fails: ValueError"),
    "import exits": ("sys.exit('no licence')", "import fails: SystemExit: no licence"),
    "syntax": ("def (", "import fails: SyntaxError"),
    "hook misspelt": (
        f"{METHOD}\n@hookimpl\ndef aply_delta(delta): ...",
        "'aply_delta'; did you mean 'apply_delta'",
    ),
    "argument misspelt": (
        f"{METHOD}\n@hookimpl\ndef evaluate(modle): ...",
        "evaluate has no argument 'modle'; did you mean 'model'",
    ),
    "catches all": (
        f"{METHOD}\n@hookimpl\ndef evaluate(**all): ...",
        "evaluate has no argument 'all'",
    ),
    "default": (
        f"{METHOD}\n@hookimpl\ndef evaluate(model=None): ...",
        "evaluate gives 'model' a default",
    ),
    "keyword only": (
        f"{METHOD}\n@hookimpl\ndef evaluate(*, model): ...",
        "evaluate takes 'model' by keyword only",
    ),
    "generator": (
        f"{METHOD}\n@hookimpl\ndef read_requests(source):\n    yield 1",
        "read_requests is a generator function",
    ),
    "no compute": (INFO, "names a method but implements no compute_delta"),
    "info raises": (
        METHOD.replace("return MethodInfo", "return 1 / 0, MethodInfo"),
        "method_info fails: division by zero",
    ),
    "info exits": (
        METHOD.replace("return MethodInfo", "return sys.exit(3), MethodInfo"),
        "method_info fails: 3",
    ),
    "info of nobody": (
        METHOD.replace("return MethodInfo", "return repr, MethodInfo"),
        "method_info returns .*, not a MethodInfo",
    ),
    "info wrong": (METHOD.replace("weights", "wieghts"), "method_info fails: .*kind"),
    "other name": (
        METHOD.replace('name="mine"', 'name="yours"'),
        "entry point is 'mine' but method_info says 'yours'",
    ),
    "other contract": (
        METHOD.replace("summary=", "api=99, summary="),
        "speaks version 99 of the hook contract, this core speaks 1",
    ),
    "observer computes": (
        "@hookimpl\ndef compute_delta(batch): ...",
        "compute_delta belongs to methods, and this plugin has no method_info",
    ),
    "observer applies": (
        "@hookimpl\ndef apply_delta(delta): ...",
        "apply_delta belongs to methods",
    ),
    "observer classifies": (
        "@hookimpl\ndef scope_classify(delta): ...",
        "scope_classify belongs to methods",
    ),
    "wrapper returns": (
        f"{METHOD}\n@hookimpl(wrapper=True)\ndef evaluate(model): ...",
        "evaluate is a wrapper that is no generator function",
    ),
    "two wrappers in one": (
        f"{METHOD}\n@hookimpl(wrapper=True, hookwrapper=True)\ndef evaluate(model):\n    yield",
        "mutually exclusive",
    ),
    "mark forgotten": (
        METHOD.replace("@hookimpl", ""),
        "nothing in it is marked with @hookimpl, not even compute_delta or method_info",
    ),
}


@pytest.mark.parametrize(("code", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_a_row_and_an_error_when_used_and_disturbs_no_other(
    install, monkeypatch, code, problem
):
    install(code)
    install(METHOD.replace("mine", "zother"), name="zother", dist="kedit-other")
    plugins = Plugins.installed()
    found = {row.name: row for row in plugins.rows()}["mine"]
    assert found.info is None
    assert found.package == "kedit-mine 1.0"
    assert re.search(problem, found.problem)
    assert "mine" not in plugins.methods()
    with pytest.raises(BrokenPluginError, match=problem) as refused:
        compute(plugins, "mine")
    assert isinstance(refused.value, KeditError)
    assert str(refused.value).startswith("plugin 'mine' is installed but broken: ")
    assert compute(plugins, "zother") == "computed"
    asked = dict.fromkeys(parameters("evaluate"), ())
    answers = plugins.call_all("evaluate", **asked)
    monkeypatch.setenv("KEDIT_DISABLE_PLUGINS", "mine")
    assert len(answers) == len(Plugins.installed().call_all("evaluate", **asked))


def parameters(hook):
    return inspect.signature(getattr(hookspecs, hook)).parameters


def test_a_plugin_that_is_an_object_instead_of_a_module_is_refused(install):
    install(METHOD, value="kedit_mine:method_info")
    assert "'kedit_mine:method_info' is not a module" in row().problem


def test_an_entry_point_to_nowhere_is_a_row(install):
    install(METHOD, value="kedit_mine_elsewhere")
    assert "import fails: ModuleNotFoundError" in row().problem


def test_two_distributions_with_one_name_are_refused_both_and_named_both(install):
    install(METHOD)
    install(METHOD, dist="kedit-other")
    plugins = Plugins.installed()
    assert "mine" not in plugins.methods()
    assert "kedit_mine" not in sys.modules
    found = {row.name: row for row in plugins.rows()}["mine"]
    assert found.package == "kedit-mine 1.0 and kedit-other 1.0"
    with pytest.raises(PluginConflictError, match=r"kedit-mine 1.0 and kedit-other 1.0") as refused:
        plugins.info("mine")
    assert isinstance(refused.value, ValueError)


def test_one_module_under_two_names_is_used_under_one_and_a_row_under_the_other(install):
    install("@hookimpl\ndef evaluate(model):\n    return None\n", name=["first", "second"])
    assert row("first").problem == ""
    assert "in use as 'first' already" in row("second").problem


def test_a_plugin_cannot_take_the_place_of_core(install):
    install("@hookimpl\ndef apply_delta(delta):\n    return 'stolen'\n", name="core")
    assert "the name 'core' is core's own" in row("core").problem


def test_a_name_is_taken_once():
    plugins = Plugins()
    plugins.register(method_of("mine"), package="kedit-first 1.0")
    with pytest.raises(PluginConflictError, match=r"kedit-first 1.0 and kedit-second 2.0"):
        plugins.register(method_of("mine"), package="kedit-second 2.0")


def test_registering_a_broken_module_raises_and_leaves_nothing_behind():
    plugins = Plugins()

    @hookimpl
    def evaluate(modle):
        return ()

    with pytest.raises(BrokenPluginError, match="did you mean 'model'"):
        plugins.register(module_of(evaluate=evaluate))
    assert plugins.rows() == ()
    assert plugins.register(method_of("mine")).name == "mine"


# --- who is called -----------------------------------------------------------------------------


def test_only_the_chosen_method_computes():
    plugins = Plugins()
    for name in ("first", "second", "third"):
        plugins.register(method_of(name))
    assert [compute(plugins, name) for name in ("second", "first", "third")] == [
        "computed by second",
        "computed by first",
        "computed by third",
    ]


def test_a_method_that_answers_none_is_not_answered_for_by_another():
    @hookimpl
    def compute_delta(batch):
        return None

    plugins = Plugins()
    plugins.register(method_of("first"))
    plugins.register(method_of("silent", compute_delta=compute_delta))
    assert compute(plugins, "silent") is None


def test_a_hook_of_a_method_comes_before_cores_own_which_comes_last():
    @hookimpl
    def apply_delta(delta):
        return "applied by its method"

    class Recorded:
        def add(self, delta):
            return "written by core"

    plugins = Plugins()
    plugins.register(method_of("plain"))
    plugins.register(method_of("special", apply_delta=apply_delta))
    arguments = {"model": 0, "tokenizer": 0, "delta": 0, "config": 0, "weights": Recorded()}
    assert plugins.call("apply_delta", "special", **arguments) == "applied by its method"
    assert plugins.call("apply_delta", "plain", **arguments) == "written by core"


def test_an_observer_may_wrap_what_only_methods_do_and_wraps_all_of_them():
    @hookimpl(wrapper=True)
    def compute_delta(batch):
        found = yield
        return f"({found})"

    plugins = Plugins()
    plugins.register(method_of("first"))
    plugins.register(module_of("watching", compute_delta=compute_delta))
    plugins.register(method_of("second"))
    assert compute(plugins, "first") == "(computed by first)"
    assert compute(plugins, "second") == "(computed by second)"


def test_the_wrapper_of_a_method_wraps_only_itself():
    @hookimpl(wrapper=True)
    def apply_delta(delta):
        return [(yield)]

    class Recorded:
        def add(self, delta):
            return "written"

    plugins = Plugins()
    plugins.register(method_of("plain"))
    plugins.register(method_of("wrapping", apply_delta=apply_delta))
    arguments = {"model": 0, "tokenizer": 0, "delta": 0, "config": 0, "weights": Recorded()}
    assert plugins.call("apply_delta", "wrapping", **arguments) == ["written"]
    assert plugins.call("apply_delta", "plain", **arguments) == "written"


def test_every_evaluator_is_asked_whatever_the_method():
    @hookimpl
    def evaluate(metrics):
        return ["mine"] if "mine" in metrics else None

    plugins = Plugins()
    plugins.register(method_of("first", evaluate=evaluate))
    plugins.register(module_of("watching", evaluate=evaluate))
    arguments = {**dict.fromkeys(parameters("evaluate")), "metrics": {"mine": {}}}
    found = plugins.call_all("evaluate", **arguments)
    assert found[:2] == [["mine"], ["mine"]]
    assert len(found) == 3


def test_the_first_plugin_that_knows_a_source_reads_it_and_core_reads_the_rest(tmp_path):
    @hookimpl
    def read_requests(source):
        return ["read by a plugin"] if source.startswith("mine:") else None

    plugins = Plugins()
    plugins.register(module_of("reading", read_requests=read_requests))
    assert plugins.call_all("read_requests", source="mine:x") == ["read by a plugin"]
    with pytest.raises(KeditError, match="No such file"):
        plugins.call_all("read_requests", source=str(tmp_path / "other:x"))


def test_one_plugin_can_be_called_alone():
    @hookimpl
    def register_commands(cli):
        cli.append("first")

    @hookimpl
    def others(cli):
        cli.append("second")

    plugins, called = Plugins(), []
    plugins.register(module_of("first", register_commands=register_commands))
    plugins.register(module_of("second", register_commands=others))
    plugins.call_one("register_commands", "second", cli=called)
    assert called == ["second"]


def test_calling_a_method_that_is_not_there_calls_nothing():
    plugins = Plugins()
    plugins.register(method_of("first"))
    with pytest.raises(UnknownMethodError):
        compute(plugins, "second")


def test_tracing_reports_each_call_who_answers_and_what_comes_back(install, monkeypatch, capsys):
    install(
        METHOD + "\n@hookimpl\ndef scope_classify(prompts):\n    raise ValueError('no scope')\n"
    )
    monkeypatch.setenv("KEDIT_TRACE", "1")
    plugins = Plugins.installed()
    capsys.readouterr()
    compute(plugins, "mine")
    scope = dict.fromkeys(("model", "tokenizer", "delta", "prompts"))
    with pytest.raises(ValueError, match="no scope"):
        plugins.call("scope_classify", "mine", **scope)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == "compute_delta -> mine"
    assert re.fullmatch(r"compute_delta = str \(\d+\.\d{3} s\)", lines[1])
    assert lines[2] == "scope_classify -> mine"
    assert re.fullmatch(r"scope_classify = no scope \(\d+\.\d{3} s\)", lines[3])


@pytest.mark.parametrize("value", ["", "0"])
def test_tracing_can_be_off(install, monkeypatch, capsys, value):
    install(METHOD)
    monkeypatch.setenv("KEDIT_TRACE", value)
    compute(Plugins.installed(), "mine")
    assert capsys.readouterr() == ("", "")


# --- what the hooks say of themselves ------------------------------------------------------------


def test_the_hooks_are_those_of_the_design():
    assert HOOKS == [
        "method_info",
        "compute_delta",
        "apply_delta",
        "evaluate",
        "metric_names",
        "scope_classify",
        "open_model",
        "read_requests",
        "register_commands",
    ]


def sections(hook):
    """Return the docstring of a hook, cut at its headings."""
    text = inspect.getdoc(getattr(hookspecs, hook))
    heads = re.split(r"^(Args|Returns|Raises|Contract):\n", text, flags=re.MULTILINE)
    return heads[0], dict(zip(heads[1::2], heads[2::2], strict=True))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_opens_with_a_summary_in_one_sentence(hook):
    summary, *rest = sections(hook)[0].strip().split("\n")
    assert re.fullmatch(r"[A-Z].*\.", summary)
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("hook", HOOKS)
def test_every_argument_of_a_hook_is_explained_in_its_order(hook):
    explained = re.findall(r"^ {4}(\w+): \S", sections(hook)[1].get("Args", ""), re.MULTILINE)
    assert explained == list(parameters(hook))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_what_it_returns_exactly_when_it_returns_something(hook):
    returns = getattr(hookspecs, hook).__annotations__["return"] != "None"
    assert ("Returns" in sections(hook)[1]) == returns


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_contract_of_whole_sentences(hook):
    contract = sections(hook)[1]["Contract"]
    points = [" ".join(point.split()) for point in re.split(r"^ {4}- ", contract, flags=re.M)[1:]]
    assert points
    assert all(re.fullmatch(r"[A-Z`].*\.", point) for point in points), points
