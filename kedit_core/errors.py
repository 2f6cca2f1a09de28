"""What can go wrong, in one sentence each: what was asked, what was found, what to do."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedit_core.conflicts import Decision


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ``"; did you mean 'x'?"`` when a known name is close to ``name``, else nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class KeditError(Exception):
    """Something that was asked cannot be done; the message says why and what to do."""


class UnknownMethodError(KeditError, LookupError):
    """No installed plugin offers this method."""

    def __init__(self, name: str, installed: Collection[str]) -> None:
        super().__init__(name, installed)
        self.name, self.installed = name, sorted(installed)

    def __str__(self) -> str:
        hint = did_you_mean(self.name, self.installed) or "; see kedit list-methods"
        return (
            f"unknown method {self.name!r} (installed: {', '.join(self.installed) or 'none'}){hint}"
        )


class BrokenPluginError(KeditError, RuntimeError):
    """A plugin is installed but cannot be used."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"plugin {self.name!r} is installed but broken: {self.problem}"


class PluginConflictError(KeditError, ValueError):
    """Two distributions claim one name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(name, first, second)
        self.name, self.first, self.second = name, first, second

    def __str__(self) -> str:
        return (
            f"two plugins claim the name {self.name!r}: {self.first} and {self.second}; "
            "uninstall one of them"
        )


class ConfigError(KeditError, ValueError):
    """A configuration names a field that does not exist or a value that does not fit."""

    def __init__(self, source: str, problems: Collection[str]) -> None:
        super().__init__(source, problems)
        self.source, self.problems = source, tuple(problems)

    def __str__(self) -> str:
        return f"{self.source}: {'; '.join(self.problems)}"


class RequestError(KeditError, ValueError):
    """An edit request cannot be understood."""

    def __init__(self, problem: str, where: str = "") -> None:
        super().__init__(problem, where)
        self.problem, self.where = problem, where

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" if self.where else self.problem


class ConflictError(KeditError, ValueError):
    """Requests cannot all hold, and no policy says which of them shall."""

    def __init__(self, decisions: "Collection[Decision]") -> None:
        super().__init__(decisions)
        self.decisions = tuple(decisions)

    def __str__(self) -> str:
        more = len(self.decisions) - 1
        others = f" (and {more} more conflict{'s' if more > 1 else ''})" if more else ""
        return (
            f"{self.decisions[0].why}{others}; leave one out, or settle it with the policy "
            'conflicts="first", "last" or "newest"'
        )


class DeltaError(KeditError, ValueError):
    """A delta is damaged, or does not fit the model it is meant for."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}"


class ModelError(KeditError, ValueError):
    """A model cannot be opened, understood or edited."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}"


class StackingError(KeditError, ValueError):
    """An edit does not go on top of another method's edit in force."""

    def __init__(
        self, method: str, problem: str, in_the_way: str, way_out: str, where: str = ""
    ) -> None:
        super().__init__(method, problem, in_the_way, way_out, where)
        self.method, self.problem, self.where = method, problem, where
        self.in_the_way, self.way_out = in_the_way, way_out

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return (
            f"{place}method {self.method!r} cannot come on top of delta {self.in_the_way}: "
            f"{self.problem}; {self.way_out}"
        )


class ExportError(KeditError, ValueError):
    """The edits in force cannot be written in the form that was asked for."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}"


class NotInForceError(KeditError, LookupError):
    """There is no such edit to take out."""

    def __init__(self, asked: str, in_force: Collection[str]) -> None:
        super().__init__(asked, in_force)
        self.asked, self.in_force = asked, tuple(in_force)

    def __str__(self) -> str:
        held = ", ".join(self.in_force[:5]) + (", …" if len(self.in_force) > 5 else "")
        found = f"in force: {held}" if self.in_force else "no edit is in force"
        return f"{self.asked}; {found}"


class JournalError(KeditError, RuntimeError):
    """A run's journal or one of its files cannot be read, written or believed."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}"


class UnknownCellError(KeditError, LookupError):
    """A run has no such cell, or several and none was named."""

    def __init__(self, run: str, cell: str | None, known: Collection[str]) -> None:
        super().__init__(run, cell, known)
        self.run, self.cell, self.known = run, cell, tuple(known)

    def __str__(self) -> str:
        if self.cell is None:
            return f"{self.run}: has {len(self.known)} cells, name one: {', '.join(self.known)}"
        hint = did_you_mean(self.cell, self.known)
        return f"{self.run}: has no cell {self.cell!r} (cells: {', '.join(self.known)}){hint}"


class RunBusyError(KeditError, RuntimeError):
    """Another process works on this run."""

    def __init__(self, run: str, pid: int, since: str) -> None:
        super().__init__(run, pid, since)
        self.run, self.pid, self.since = run, pid, since

    def __str__(self) -> str:
        return (
            f"{self.run}: process {self.pid} works on this run since {self.since}; wait until it has "
            "ended, or stop it"
        )
