"""What people and programs see: tables and bars on one stream, one JSON document on the other."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from kedit_core.progress import Advance, Progress


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line what happens when nobody reads on."""
        raise BrokenPipeError


def screen() -> Console:
    """Return the console for tables, on stdout."""
    return _Screen(highlight=False, emoji=False)


def counted(number: int, thing: str) -> str:
    """Return "1 edit", "2 edits" and so on."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def readable(size: int) -> str:
    """Return a number of bytes in MiB or KiB."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def print_json(document: Any) -> None:
    """Print one JSON document to stdout; what is no finite number is null there, as JSON has no other."""
    plain = json.loads(json.dumps(document, default=str), parse_constant=lambda _: None)
    every_letter = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=not every_letter) + "\n")


class BarProgress(Progress):
    """Draws a bar with speed and remaining time on stderr, and nothing when that is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Open a task of ``total`` units and draw its bar until it ends."""
        from rich.progress import (
            BarColumn,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(show_speed=True),
            TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        hidden = not self._console.is_terminal
        with Bars(*columns, console=self._console, transient=True, disable=hidden) as bars:
            task = bars.add_task(description, total=total)
            yield lambda count: bars.advance(task, count)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing its own bars while a model is opened."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
