"""Ctrl-C that never finds a model half changed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Gate:
    """Decides what a Ctrl-C may do: interrupt at once while open, else wait."""

    def __init__(self) -> None:
        self.pending = False
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
        """Raise KeyboardInterrupt if a Ctrl-C came while the gate was closed."""
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    def receive(self, _: int, __: FrameType | None) -> None:
        """Handle SIGINT."""
        if self._open:
            # Closed before raising: whatever cleans up after this one is not interrupted again.
            self._open = False
            raise KeyboardInterrupt
        self.pending = True


@contextmanager
def uninterrupted() -> Iterator[Gate]:
    """Hold back Ctrl-C inside the block, but where its gate is open.

    An interrupt still pending at the end goes to the handler that was there before. Only the main
    thread ever gets KeyboardInterrupt, so elsewhere there is nothing to hold back.
    """
    gate = Gate()
    if threading.current_thread() is not threading.main_thread():
        yield gate
        return
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # set from outside Python, and could not be put back
        yield gate
        return
    signal.signal(signal.SIGINT, gate.receive)
    try:
        yield gate
    finally:
        signal.signal(signal.SIGINT, before)
        if gate.pending and callable(before):
            before(signal.SIGINT, None)
