"""What a method says while it works, however it says it."""

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch

_OTHERS = ("torch", "transformers")
"""Whose loggers speak for themselves."""


class Heard:
    """What was said inside a block.

    Attributes:
        text: printed, by Python or by C code.
        warned: warnings.
        logged: messages to loggers, from level ``WARNING`` on.
    """

    def __init__(self) -> None:
        """Begin with silence."""
        self.text = ""
        self.warned: list[str] = []
        self.logged: list[str] = []

    def check(self, who: str) -> None:
        """See that nothing was said.

        Args:
            who: may have spoken, for the complaint.
        """
        assert not self.text, f"{who} printed {self.text[:200]!r}"
        assert not self.warned, f"{who} warned: {self.warned[0]}"
        assert not self.logged, f"{who} logged: {self.logged[0]}"


@contextmanager
def listening() -> Iterator[Heard]:
    """Hear what Python and what C code prints, what is warned of, and what is logged as a warning."""
    heard, said = Heard(), io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]

    def hear(logger: logging.Logger, record: logging.LogRecord) -> None:
        # Here and not in a handler of the root: a logger may keep its records from it.
        if record.levelno >= logging.WARNING and logger.name.partition(".")[0] not in _OTHERS:
            heard.logged.append(f"{logger.name}: {record.getMessage()}")

    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            with (
                redirect_stdout(said),
                redirect_stderr(said),
                patch.object(logging.Logger, "handle", hear),
            ):
                yield heard
        finally:
            for descriptor, own in zip((1, 2), kept, strict=True):
                os.dup2(own, descriptor)
                os.close(own)
        file.seek(0)
        heard.text = said.getvalue() + file.read().decode(errors="replace")
    heard.warned = [
        str(one.message) for one in warned if not issubclass(one.category, DeprecationWarning)
    ]
