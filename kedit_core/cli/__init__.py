"""The command line: ``kedit``."""

import sys

from kedit_core.cli.app import application
from kedit_core.errors import KeditError
from kedit_core.plugins import Plugins


def main(arguments: list[str] | None = None) -> None:
    """Run ``kedit`` and exit: 0 done, 1 a check failed, 2 the user's error in one sentence."""
    from rich.console import Console

    try:
        application(Plugins.installed())(arguments)
    except KeditError as error:
        Console(stderr=True, highlight=False).print(f"kedit: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("kedit: interrupted; nothing was left half done")
        sys.exit(130)
