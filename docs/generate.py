"""Makes the reference pages from the code: hooks, contract, methods, commands, errors, metrics, facts.

``python docs/generate.py`` writes them; with ``--check`` it exits 1 when one is not current.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import typer
from public_names import public_names

import kedit_lm_eval
from kedit_atlas.facts_page import facts_page
from kedit_core import (
    Delta,
    Editor,
    EditRequest,
    SideMemory,
    errors,
    export_merged,
    hookimpl,
    hookspecs,
    metrics,
)
from kedit_core.cli.app import application
from kedit_core.cli.show import settings_of
from kedit_core.config import load_config
from kedit_core.conflicts import settled
from kedit_core.delta_files import load_deltas
from kedit_core.journal import open_journal
from kedit_core.methods import Kind
from kedit_core.plugins import Plugins
from kedit_core.presets import presets_of
from kedit_core.stacking import check_method
from kedit_core.testing import (
    MethodContract,
    byte_level_tokenizer,
    checks,
    edit_of,
    facts,
    neighbours,
    tiny_model,
    trained_model,
)
from kedit_lab.metric_names import METRICS

REFERENCE = Path(__file__).parent / "reference"
OURS = ("rome", "memit", "pmet", "serac", "wise")
_USE = """from kedit_core.testing import MethodContract


class TestMine(MethodContract):
    method = "mine"
"""
NOTE = "<!-- Made by `make docs` from the code; edit the code. -->\n"


def hooks() -> Iterator[str]:
    """Yield the page of hooks: each with its signature, its arguments and its contract."""
    yield "# Hooks\n"
    yield (
        "A plugin is a module that implements some of these functions, marked with `kedit_core.hookimpl`. "
        "It takes, by name, only the arguments it uses, and gives none a default.\n"
    )
    for name, hook in _hooks():
        arguments = ", ".join(inspect.signature(hook).parameters)
        yield f"## {name}\n\n```python\n{name}({arguments})\n```\n"
        if vars(hook)["kedit_spec"]["firstresult"]:
            yield "*Stops at the first answer that is not None.*\n"
        yield from _sections(inspect.getdoc(hook) or "")


def methods() -> Iterator[str]:
    """Yield the page of the methods that this repository ships."""
    plugins = Plugins.installed()
    yield "# Methods\n"
    for name in OURS:
        info = plugins.info(name)
        yield f"## {name}\n\n{info.summary}. {info.paper}.\n"
        takes = "several requests at once" if info.batched else "one request at a time"
        needs = ", ".join(sorted(info.needs))
        yield f"Kind *{info.kind}*; takes {takes}; needs {needs}.\n"
        yield "| setting | type | default | |\n| --- | --- | --- | --- |"
        for one in settings_of(info.config):
            kind = one.type.replace("|", "\\|")
            yield f"| `{one.name}` | `{kind}` | `{one.default!r}` | {one.about} |"
        yield "\nPresets, chosen by model type, layers and width:\n"
        for preset in presets_of(plugins.module(name)):
            yield f"- {preset.name}: {preset.source}"


def command_line() -> Iterator[str]:
    """Yield the page of the command line: the help of every command."""
    yield "# Command line\n"
    root = typer.main.get_command(application(Plugins.installed()))
    yield from _command("kedit", root)


def contract() -> Iterator[str]:
    """Yield the page of the contract: how a method is held to it, and every check."""
    yield "# The contract of methods\n"
    yield (
        "A plugin's author runs all of it with three lines in a test file; "
        "`pip install kedit-core[testing]` brings pytest.\n"
    )
    yield f"```python\n{_USE}```\n"
    yield (
        "Each check runs on a model of Conv1D modules and on one of Linear modules, on CPU, offline, with one "
        f"torch thread. They have 2 blocks of width 64, know {len(facts())} facts in three wordings each, are "
        "trained in seconds the first time, and then kept in pytest's cache. "
        "A check that does not concern a method is skipped with its reason.\n"
    )
    yield "| attribute | |\n| --- | --- |"
    for name, about in _described(MethodContract).items():
        default = getattr(MethodContract, name, "required")
        yield f"| `{name}` | {about} ({'required' if default == 'required' else f'default `{default!r}`'}) |"
    yield (
        "| `plugins()` | where the method is found; override it to test a module that is not installed |\n"
    )
    tests = {check.sentence.replace("``", "`"): check.name for check in checks()}
    for name, hook in _hooks():
        rows = [item.removeprefix("- ") for item in _items(hook, "Contract")]
        rows = [f"| {row} | `{tests[row]}` |" for row in rows if row in tests]
        if rows:
            yield f"## {name}\n\n| sentence | check |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    yield (
        "The same models serve a plugin's other tests; all names are in `kedit_core.testing`:\n\n"
        "| name | |\n| --- | --- |"
    )
    for found in (trained_model, facts, neighbours, edit_of, tiny_model, byte_level_tokenizer):
        about = (inspect.getdoc(found) or "").partition("\n\n")[0].replace("\n", " ")
        yield f"| `{found.__name__}{_signature(found)}` | {about.replace(':func:', '')} |"


def error_classes() -> Iterator[str]:
    """Yield the page of errors: each with what it also is, its fields and what it says."""
    yield (
        "# Errors\n\nEach is a `KeditError` and the builtin that a caller would guess. "
        "The messages below were raised while this page was made. Anything else that escapes is a bug.\n"
    )
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(error, errors.KeditError):
            continue
        yield f"## {name}\n\n{(inspect.getdoc(error) or '').splitlines()[0]}\n"
        if error is not errors.KeditError:
            also = [base.__name__ for base in error.__bases__ if base is not errors.KeditError]
            fields = [f"`{field}`" for field in inspect.signature(error).parameters]
            yield f"Also a `{', '.join(also)}`. Fields: {', '.join(fields)}.\n"
        yield f"> {_message(error)}\n"


def metric_names() -> Iterator[str]:
    """Yield the page of metrics: what they mean and every name."""
    yield "# Metrics\n"
    yield (inspect.getdoc(metrics) or "").replace("``", "`") + "\n"
    yield "Names: " + ", ".join(f"`{name}`" for name in metrics.KNOWN) + ".\n"
    for package, names in (("kedit-lab", METRICS), ("kedit-lm-eval", kedit_lm_eval.METRICS)):
        yield f"## {package}\n\n| metric | |\n| --- | --- |"
        for name, about in names.items():
            yield f"| `{name}` | {about} |"
        yield ""


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "hooks.md": hooks,
    "contract.md": contract,
    "methods.md": methods,
    "command-line.md": command_line,
    "errors.md": error_classes,
    "metrics.md": metric_names,
    "public-names.md": public_names,
    "atlas-facts.md": lambda: iter([facts_page()]),
}


def _hooks() -> Iterator[tuple[str, Callable[..., object]]]:
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        if hasattr(hook, "kedit_spec"):
            yield name, hook


def _items(described: object, title: str) -> Iterator[str]:
    """Yield the items under one title of a docstring."""
    inside = False
    for text in _sections(inspect.getdoc(described) or ""):
        if text.startswith("**"):
            inside = text == f"**{title}**\n"
        elif inside and text.startswith("- "):
            yield text


def _described(cls: type) -> dict[str, str]:
    """Return the attributes of a class with what its docstring says of each."""
    items = (item.removeprefix("- ").partition(": ") for item in _items(cls, "Attributes"))
    return {name: about.rstrip(".") for name, _, about in items}


def _signature(function: Callable[..., object]) -> str:
    """Return the arguments of a function without their types."""
    taken = inspect.signature(function).parameters.values()
    plain = [one.replace(annotation=one.empty) for one in taken]
    shown = str(inspect.Signature(plain)).replace("\\n", " ")
    return re.sub(r"=\('.*?\)(?=[,)])", "=SENTENCES", shown).replace("|", "\\|")


def _message(error: type[errors.KeditError]) -> str:
    """Return what an error says when somebody makes the mistake."""
    try:
        MISTAKES[error]()
    except error as raised:
        return str(raised)
    raise SystemExit(f"the mistake of docs/generate.py raises no {error.__name__}")


def _editor() -> Editor:
    return Editor(tiny_model("llama"), byte_level_tokenizer(bos=True))


def _misspelt() -> None:
    plugin = ModuleType("mine")
    plugin.evaluate = hookimpl(specname="evaluate")(lambda modle: None)  # type: ignore[attr-defined]  # noqa: ARG005
    Plugins().register(plugin)


def _twice() -> None:
    plugins = Plugins()
    for package in ("one-package 1.0", "another 2.1"):
        plugins.register(ModuleType("mine"), "mine", package)


def _transposed() -> None:
    plugins = Plugins()
    for name in OURS:
        plugins.register(Plugins.installed().module(name))
    plugins.info("roem")


def _answering(target: str) -> EditRequest:
    return EditRequest(prompt="The capital of Norway is", subject="Norway", target_new=target)


def _two_answers() -> None:
    settled([_answering("Lima"), _answering("Quito")], [], "error")


def _weights_under_a_memory() -> None:
    memory = SideMemory(at="model.layers.27", tensors={})
    delta = Delta(method="wise", requests=[_answering("Lima")], parts=[memory])
    kinds: dict[str, Kind] = {"memit": "weights", "wise": "side-memory"}
    check_method("memit", [delta], kinds.__getitem__)


def _busy() -> None:
    raise errors.RunBusyError("plan.run", 4711, "2026-11-29T05:12:40+00:00")


def _misnamed_cell() -> None:
    raise errors.UnknownCellError("plan.run", "memti", ["rome", "memit"])


MISTAKES: dict[type[errors.KeditError], Callable[[], object]] = {
    errors.KeditError: lambda: _editor().scope(["The capital of Norway is"]),
    errors.BrokenPluginError: _misspelt,
    errors.ConfigError: lambda: load_config(Plugins.installed().info("rome").config, {"laier": 5}),
    errors.ConflictError: _two_answers,
    errors.DeltaError: lambda: load_deltas("edits.safetensors"),
    errors.ExportError: lambda: export_merged(_editor(), "edited-model"),
    errors.JournalError: lambda: open_journal("plan.run"),
    errors.ModelError: lambda: Editor.from_pretrained("atlas-gpt2:small"),
    errors.NotInForceError: lambda: _editor().undo(),
    errors.PluginConflictError: _twice,
    errors.RequestError: lambda: EditRequest(
        prompt="The capital of Norway is", subject="Sweden", target_new="Lima"
    ),
    errors.RunBusyError: _busy,
    errors.StackingError: _weights_under_a_memory,
    errors.UnknownCellError: _misnamed_cell,
    errors.UnknownMethodError: _transposed,
}
"""What goes wrong on the page of errors, really."""


def _sections(doc: str) -> Iterator[str]:
    """Turn a docstring's summary, Args, Returns and Contract into paragraphs and lists."""
    item = ""
    for line in [*doc.splitlines(), ""]:
        text = line.strip().replace("``", "`")
        indent = len(line) - len(line.lstrip())
        if item and (indent <= 4 or not text):
            yield item
            item = ""
        if indent == 0:
            yield f"**{text[:-1]}**\n" if text.endswith(":") and " " not in text else text
        elif indent == 4:
            item = text if text.startswith("- ") else f"- {text}"
        else:
            item += f" {text}"


def _command(name: str, command: object) -> Iterator[str]:
    inside = getattr(command, "commands", {})
    yield f"## {name}\n\n{(getattr(command, 'help', '') or '').strip()}\n"
    rows = []
    for option in getattr(command, "params", ()):
        flags = ", ".join(option.opts) if option.opts[0].startswith("-") else option.name.upper()
        if flags != "--help":
            rows.append(f"| `{flags}` | {getattr(option, 'help', '') or ''} |")
    if rows:
        yield "| | |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    for inner, found in inside.items():
        yield from _command(f"{name} {inner}", found)


def main(*, check: bool) -> int:
    """Write every page, or say which are not current."""
    stale = []
    for name, page in PAGES.items():
        text = NOTE + "\n".join(page()).rstrip() + "\n"
        path = REFERENCE / name
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run make docs\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
