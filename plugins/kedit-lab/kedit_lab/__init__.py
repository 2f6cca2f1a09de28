"""The lab: the field's data sets and metrics, and a report to look at."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kedit_core import hookimpl

if TYPE_CHECKING:
    import typer

    from kedit_core import EditRequest
    from kedit_core.errors import RequestError


@hookimpl
def read_requests(source: str) -> "Iterable[EditRequest | RequestError] | None":
    """Read ``SCHEMA:FILE`` and ``SCHEMA:hf://OWNER/NAME``, and files whose schema shows."""
    from kedit_lab.reading import read

    return read(source)


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """Add ``kedit lab``."""
    from kedit_lab.commands import lab

    cli.add_typer(lab, name="lab")
