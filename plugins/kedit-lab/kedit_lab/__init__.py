"""The lab: the field's data sets and metrics, and a report to look at.

Importing this package imports no torch.
"""

from typing import TYPE_CHECKING

from kedit_core import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``kedit lab``."""
    from kedit_lab.commands import lab

    cli.add_typer(lab, name="lab")
