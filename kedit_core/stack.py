"""The edits of one model, oldest first, and how they get in and out of it.

A history lists every delta that was made and not undone. Of a memory each new delta holds the whole
memory, so only the last one of its method is in force; the earlier ones are superseded and come
back when it is undone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kedit_core.deltas import Delta
from kedit_core.errors import KeditError
from kedit_core.interrupts import uninterrupted
from kedit_core.reports import Applied


class Stack:
    """Keeps the model in the state that a history of deltas describes."""

    def __init__(self, apply: Callable[[Delta], Applied], replaces: Callable[[str], bool]) -> None:
        """Start with nothing in force.

        Args:
            apply: puts a delta into the model.
            replaces: tells whether a method's new delta replaces its earlier one.
        """
        self._apply = apply
        self._replaces = replaces
        self._applied: dict[str, tuple[Delta, Applied]] = {}
        self._lent: set[object] = set()
        self.history: tuple[Delta, ...] = ()
        self.closed = False

    def in_force(self, history: Sequence[Delta] | None = None) -> tuple[Delta, ...]:
        """Return the deltas of a history (by default the present one) that are not superseded."""
        history = self.history if history is None else history
        last = {delta.method: place for place, delta in enumerate(history)}
        return tuple(
            delta
            for place, delta in enumerate(history)
            if last[delta.method] == place or not self._replaces(delta.method)
        )

    def describe(self, delta: Delta) -> None:
        """Put a better described form of a delta in the place of the one with its id."""
        self.history = tuple(delta if one.id == delta.id else one for one in self.history)
        self._applied[delta.id] = (delta, self._applied[delta.id][1])

    def settle(self, history: Sequence[Delta]) -> None:
        """Bring the model to ``history``; when that fails, back to where it was.

        Raises:
            KeditError: inside :meth:`without`, where the model is not what the history says, or closed.
        """
        if self.closed:
            raise KeditError("this editor has let go of its model; make a new one")
        if self._lent:
            raise KeditError("the model is lent out; edits are made and undone outside original()")
        before = self.history
        with uninterrupted() as gate:
            try:
                self._move(tuple(history))
                gate.check()
            except BaseException:
                self._move(before)
                raise

    @contextmanager
    def without(self, leave_out: Callable[[Delta], bool]) -> Iterator[None]:
        """Show the model without some deltas inside the block."""
        removed: list[Delta] = []
        borrower = object()
        with uninterrupted() as gate:
            try:
                self._lent.add(borrower)
                removed += [delta for delta, _ in self._applied.values() if leave_out(delta)]
                for delta in reversed(removed):
                    self._take_out(delta.id)
                with gate.open():
                    yield
            finally:
                self._lent.discard(borrower)
                self._put_back(removed)

    def _move(self, history: tuple[Delta, ...]) -> None:
        wanted = self.in_force(history)
        ids = [delta.id for delta in wanted]
        kept = [name for name in self._applied if name in ids]
        # What comes after the first gap or swap goes out and in again, so that the order is the
        # history's.
        same = next(
            (n for n, (a, b) in enumerate(zip(kept, ids, strict=False)) if a != b), len(kept)
        )
        for name in reversed(self._applied.copy()):
            if name not in kept[:same]:
                self._take_out(name)
        for delta in wanted[same:]:
            self._applied[delta.id] = (delta, self._apply(delta))
        self.history = history

    def _put_back(self, removed: Sequence[Delta]) -> None:
        """Apply again what a block left out, and keep the handles in the order of the history."""
        for delta in removed:
            if delta.id not in self._applied:
                self._applied[delta.id] = (delta, self._apply(delta))
        order = {
            delta.id: self._applied[delta.id]
            for delta in self.in_force()
            if delta.id in self._applied
        }
        self._applied = order

    def _take_out(self, name: str) -> None:
        self._applied[name][1].undo()
        del self._applied[name]
