"""The pieces that locate-then-edit methods are made of; a plugin only for its commands.

Importing this package imports no torch: the pieces are modules of their own (``kedit_locate.rows``,
``keys``, ``values``, ``moments``, ``solver`` …).
"""

from typing import TYPE_CHECKING

from kedit_core import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``kedit locate``."""
    from kedit_locate.commands import locate

    cli.add_typer(locate, name="locate")
