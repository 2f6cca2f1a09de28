"""Makes the reference pages from the code: hooks, methods, commands, errors, metrics, facts.

``python docs/generate.py`` writes them; with ``--check`` it exits 1 when one is not current.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from kedit_atlas.facts_page import facts_page
from kedit_core import errors, hookspecs, metrics
from kedit_core.cli.app import application
from kedit_core.cli.show import settings_of
from kedit_core.plugins import Plugins
from kedit_core.presets import presets_of

REFERENCE = Path(__file__).parent / "reference"
OURS = ("rome",)
NOTE = "<!-- Made by `make docs` from the code; edit the code. -->\n"


def hooks() -> Iterator[str]:
    """Yield the page of hooks: each with its signature, its arguments and its contract."""
    yield "# Hooks\n"
    yield (
        "A plugin is a module that implements some of these functions, marked with `kedit_core.hookimpl`. "
        "It takes, by name, only the arguments it uses, and gives none a default.\n"
    )
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        options = getattr(hook, "kedit_spec", None)
        if options is None:
            continue
        arguments = ", ".join(inspect.signature(hook).parameters)
        yield f"## {name}\n\n```python\n{name}({arguments})\n```\n"
        if options["firstresult"]:
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


def error_classes() -> Iterator[str]:
    """Yield the page of errors: each with what it also is and when it is raised."""
    yield "# Errors\n\nAnything else that escapes is a bug.\n"
    yield "| error | also a | |\n| --- | --- | --- |"
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.KeditError):
            also = [base.__name__ for base in error.__bases__ if base is not errors.KeditError]
            yield f"| `{name}` | `{', '.join(also)}` | {(inspect.getdoc(error) or '').splitlines()[0]} |"


def metric_names() -> Iterator[str]:
    """Yield the page of metrics: what they mean and every name."""
    yield "# Metrics\n"
    yield (inspect.getdoc(metrics) or "").replace("``", "`") + "\n"
    yield "Names: " + ", ".join(f"`{name}`" for name in metrics.KNOWN) + "."


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "hooks.md": hooks,
    "methods.md": methods,
    "command-line.md": command_line,
    "errors.md": error_classes,
    "metrics.md": metric_names,
    "atlas-facts.md": lambda: iter([facts_page()]),
}


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
