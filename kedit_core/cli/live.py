"""A table of a run that lives while it goes: progress, speed, remaining time, last scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Self

from attrs import define, field
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kedit_core.cli.scores import HEADINGS, shown
from kedit_core.judgements import Judgement
from kedit_core.plans import Cell
from kedit_core.progress import Advance, Progress
from kedit_core.runs import Watcher

_EDITING = "editing"


@define
class _Row:
    """How far one cell is."""

    requests: int = 0
    done: int = 0
    began: float = 0.0
    began_at: int = 0
    state: str = "waits"
    scores: Mapping[str, float] = field(factory=dict)
    at: int = 0

    def speed(self) -> float:
        seconds = monotonic() - self.began
        return (self.done - self.began_at) / seconds if self.began and seconds > 0 else 0.0


class LiveTable(Progress):
    """Draws a table of a run on stderr while it goes, and nothing when that is no terminal.

    Attributes:
        watcher: to be shown the run.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        """Draw a row for each of ``cells``."""
        self._rows = {cell.name: _Row() for cell in cells}
        self._now = ""
        self._doing = ""
        console = Console(stderr=True)
        self._live = Live(
            get_renderable=self.table, console=console, refresh_per_second=4, transient=True
        )
        self._shown = console.is_terminal
        self.watcher: Watcher = _Watching(self._rows, self._begin)

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._live.stop()

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        """Take a report of progress: a stream's counts the edits of its row, others name what is done."""
        del unit
        if description == _EDITING and self._now in self._rows:
            yield self._advance
            return
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._doing = f"{description} {done:,}/{total:,}"

        self._doing = description
        try:
            yield advance
        finally:
            self._doing = ""

    def table(self) -> Table:
        """Return the table as it is now."""
        known = [
            name for name in HEADINGS if any(name in row.scores for row in self._rows.values())
        ]
        table = Table(box=None, pad_edge=False, header_style="bold", caption=self._doing or None)
        table.add_column("STREAM", overflow="fold")
        for heading in ("MADE", "EDITS/S", "LEFT", *(HEADINGS[name] for name in known), "STATE"):
            table.add_column(heading, justify="right" if heading != "STATE" else "left")
        for name, row in self._rows.items():
            speed = row.speed() if row.state == "goes" else 0.0
            left = (row.requests - row.done) / speed if speed else 0.0
            scores = [shown(metric, row.scores.get(metric)) for metric in known]
            made = f"{row.done}/{row.requests}" if row.requests else "-"
            pace = (f"{speed:.2f}", duration(left)) if speed else ("-", "-")
            table.add_row(name, made, *pace, *scores, row.state)
        return table

    def _begin(self, name: str) -> None:
        self._now = name

    def _advance(self, count: int) -> None:
        row = self._rows[self._now]
        row.done += count


class _Watching(Watcher):
    def __init__(self, rows: dict[str, _Row], begin: Callable[[str], None]) -> None:
        self._rows, self._begin = rows, begin

    def begin(self, cell: Cell, requests: int, made: int) -> None:
        self._begin(cell.name)
        row = self._rows[cell.name]
        row.requests, row.state = requests, "goes"
        row.began, row.began_at = monotonic(), made

    def judged(self, cell: Cell, judgement: Judgement) -> None:
        row = self._rows[cell.name]
        row.scores, row.at = judgement.report.means(), judgement.at

    def end(self, cell: Cell, stopped: str) -> None:
        self._rows[cell.name].state = "stopped" if stopped else "done"


def duration(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
