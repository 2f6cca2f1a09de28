"""Ctrl-C that never finds a model half changed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class Gate:
    """Decides what a Ctrl-C may do: reach the handler from before at once while open, else wait."""

    def __init__(self, before: Handler | None = None) -> None:
        self._before = before
        self._pending = False
        self._open = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let one Ctrl-C through inside the block; those that come while it is handled wait."""
        self.check()
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def check(self) -> None:
        """Hand a Ctrl-C that came while the gate was closed to the handler from before."""
        if self._pending and self._before is not None:
            self._pending = False
            self._before(signal.SIGINT, None)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
        if not self._open or self._before is None or _between_blocks(frame) or _deletes(frame):
            self._pending = True
            return
        # Closed before raising: whatever cleans up after this one is not interrupted again.
        self._open = False
        self._before(number, frame)
        self._open = True


def _between_blocks(frame: FrameType | None) -> bool:
    """Tell whether a ``with`` is being entered or left: an exception there would skip its cleaning up."""
    return frame is not None and frame.f_globals.get("__name__") == "contextlib"


def _deletes(frame: FrameType | None) -> bool:
    """Tell whether something is being deleted: Python ignores what is raised there, and it would be lost."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def uninterrupted() -> Iterator[Gate]:
    """Hold back Ctrl-C inside the block, but where its gate is open.

    What changes a model and puts it back does both in here, and opens the gate for what comes
    between. Gates nest: a Ctrl-C passes when all of them are open. One still pending at the end
    goes to the handler from before. Only the main thread ever gets signals, so elsewhere there is
    nothing to hold back.
    """
    before = signal.getsignal(signal.SIGINT)
    here = threading.current_thread() is threading.main_thread()
    # Not callable: ignored, deadly, or set from outside Python and impossible to put back.
    if not here or not callable(before):
        yield Gate()
        return
    gate = Gate(before)
    signal.signal(signal.SIGINT, gate.receive)
    try:
        yield gate
    finally:
        signal.signal(signal.SIGINT, before)
        gate.check()
