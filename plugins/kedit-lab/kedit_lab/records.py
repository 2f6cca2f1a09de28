"""Records of a file: a JSON array or JSON lines, parsed one record at a time."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedit_core.errors import RequestError

_BLANK = re.compile(r"[ \t\r\n]*")
_HEAD = 1 << 20
"""Characters that are read to see what a file holds."""


def records_of(path: str) -> Iterator[Any]:
    """Return the records of a file, each a JSON value; what is no JSON is a RequestError in its place.

    NaN and infinities, which some data sets have where a text is missing, are None.

    Raises:
        RequestError: the file is missing, is no UTF-8 text or holds no record.
    """
    text = _text(path)
    if not text.strip():
        raise RequestError("holds no record", path)
    start = _after_blank(text, 0)
    return _array(text, start + 1) if text[start] == "[" else _sequence(text, start)


def first_record(path: str) -> Any:
    """Return the first record of a file, or None when it has none that can be read at a glance."""
    try:
        text = _text(path, _HEAD)
    except RequestError:
        return None
    start = _after_blank(text, 0)
    try:
        return _Parser(text).value(_after_blank(text, start + text.startswith("[", start)))[0]
    except RequestError:
        return None


class _Parser:
    """Reads JSON values out of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._twice: list[str] = []
        # Nothing is imported from the file: no number is infinite, and no name is given twice unseen.
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._once, parse_constant=lambda _: None
        )

    def value(self, start: int) -> tuple[Any, int]:
        """Return the value that begins at a character, and where it ends.

        An object that names a field twice is a RequestError as a value; JSON would take the last.

        Raises:
            RequestError: there is no JSON value.
        """
        self._twice.clear()
        try:
            found, end = self._decoder.raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise RequestError(f"is not JSON: {error.msg} at {place}") from None
        except (ValueError, RecursionError) as error:
            raise RequestError(f"cannot be read as JSON ({error})") from None
        if self._twice:
            return RequestError(f"field {self._twice[0]!r} is given twice"), end
        return found, end

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self._twice += [name for name in found if names.count(name) > 1]
        return found


def _array(text: str, start: int) -> Iterator[Any]:
    """Yield the values of an array; after one that is no JSON nobody can tell where the next begins."""
    parser, at = _Parser(text), _after_blank(text, start)
    if text.startswith("]", at):
        yield RequestError("is an empty list")
        return
    while True:
        try:
            found, end = parser.value(at)
        except RequestError as error:
            yield RequestError(f"{error.problem}; nothing behind it can be read")
            return
        yield found
        end = _after_blank(text, end)
        if text.startswith("]", end):
            return
        if not text.startswith(",", end):
            yield RequestError("is cut off: the list ends without a closing bracket")
            return
        at = _after_blank(text, end + 1)


def _sequence(text: str, at: int) -> Iterator[Any]:
    """Yield values that follow one another, as in JSON lines; after a bad one the next line goes on."""
    parser = _Parser(text)
    while at < len(text):
        try:
            found, at = parser.value(at)
            yield found
        except RequestError as error:
            yield error
            newline = text.find("\n", at)
            at = len(text) if newline < 0 else newline
        at = _after_blank(text, at)


def _after_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return at if match is None else match.end()


def _text(path: str, characters: int = -1) -> str:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            return file.read(characters)
    except FileNotFoundError:
        hint = f"; a data set of the hub is written hf://{path}" if path.count("/") == 1 else ""
        raise RequestError(f"cannot be read (there is no such file{hint})", path) from None
    except OSError as error:
        raise RequestError(f"cannot be read ({error.strerror})", path) from None
    except ValueError as error:  # a null byte in the name is one, too
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RequestError(f"cannot be read ({reason})", path) from None
