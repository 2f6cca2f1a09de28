"""The command line: ``kedit``."""

import os
import sys
import warnings
from io import TextIOWrapper
from typing import Any

from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_CLOSED = 141  # 128 + SIGPIPE


def main(arguments: list[str] | None = None) -> None:
    """Run ``kedit`` and exit: 0 done, 1 a check failed, 2 the user's error in one sentence."""
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or a pipe cannot show a letter, its number is better than a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn  # type: ignore[assignment]
            try:
                _run(Plugins.installed(), given)
            finally:
                sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        sys.exit(_CLOSED)  # as programs do whose reader has seen enough
    except OSError as error:
        _forget_stdout()
        tell(f"the output cannot be written ({error.strerror or error})")
        sys.exit(2)
    except KeditError as error:
        tell(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        tell("interrupted; nothing was left half done")
        sys.exit(_INTERRUPTED)


def _forget_stdout() -> None:
    """Let Python flush what is left of stdout into nothing when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(sentence: str) -> None:
    """Print one line on stderr, in kedit's name."""
    from rich.console import Console

    line = " ".join(sentence.splitlines())
    Console(stderr=True, highlight=False, emoji=False).print(
        f"kedit: {line}", markup=False, soft_wrap=True
    )


def _run(plugins: Plugins, arguments: list[str]) -> None:
    # Typer builds its options with pydantic, which takes longer to import than everything else here.
    # The command that people type most goes around it in its two plain forms.
    if arguments in (["list-methods"], ["list-methods", "--json"]):
        from kedit_core.cli.list_methods import show_methods

        show_methods(plugins, as_json="--json" in arguments)
        return
    import typer

    from kedit_core.cli.app import application

    # Typer keeps its own copy of click, and of these classes only BadParameter has a public name.
    complaint: Any = typer.BadParameter.__mro__[2]
    try:
        app = application(plugins, arguments[0] if arguments else None)
        code = app(arguments, prog_name="kedit", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except complaint as error:
        _tell_misuse(error)
        sys.exit(error.exit_code)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt  # Typer makes an exit code of it
    sys.exit(code if type(code) is int else 0)


def _tell_misuse(error: Any) -> None:
    """Say what is wrong with a command line; without any command the help has been shown already."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    what = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kedit"
    what = (what[:1].lower() + what[1:]).replace(". Did you mean", "; did you mean")
    tell(f"{what}{'' if what.endswith('?') else ';'} see {command} --help")


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    kind = "" if issubclass(category, UserWarning) else f"{category.__name__}: "
    tell(f"warning: {kind}{message}")
