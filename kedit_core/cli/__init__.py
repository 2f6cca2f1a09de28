"""The command line: ``kedit``."""

import sys
from io import TextIOWrapper

from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins


def main(arguments: list[str] | None = None) -> None:
    """Run ``kedit`` and exit: 0 done, 1 a check failed, 2 the user's error in one sentence."""
    from rich.console import Console

    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or a pipe cannot show a letter, its number is better than a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(Plugins.installed(), given)
    except KeditError as error:
        console = Console(stderr=True, highlight=False, emoji=False)
        console.print(f"kedit: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("kedit: interrupted; nothing was left half done")
        sys.exit(130)


def _run(plugins: Plugins, arguments: list[str]) -> None:
    # Typer builds its options with pydantic, which takes longer to import than everything else here.
    # The command that people type most goes around it in its two plain forms.
    if arguments in (["list-methods"], ["list-methods", "--json"]):
        from kedit_core.cli.list_methods import show_methods

        show_methods(plugins, as_json="--json" in arguments)
        return
    from kedit_core.cli.app import application

    application(plugins, arguments[0] if arguments else None)(arguments, prog_name="kedit")
