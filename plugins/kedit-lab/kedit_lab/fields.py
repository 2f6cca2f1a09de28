"""Fields of a record, read with their type: whatever is wrong names the field by its path."""

import re
from collections.abc import Collection, Iterator, Mapping
from textwrap import shorten
from typing import Any

from attrs import field, frozen

from kedit_core import Probe
from kedit_core.errors import RequestError

_MOST = 60
"""Characters of a wrong value that a message shows."""


@frozen(kw_only=True)
class Fields:
    """The fields of one JSON object.

    A field that is left out, null or blank says nothing, as data sets spell that in all three ways.

    Attributes:
        values: by name.
        path: how the object is reached from its record, such as ``requested_rewrite``; empty for it.
    """

    values: Mapping[str, Any] = field(repr=False)
    path: str = ""

    def __contains__(self, name: str) -> bool:
        """Tell whether a field says something."""
        value = self.values.get(name)
        return value is not None and value not in ("", [], {})

    def text(self, *names: str) -> str:
        """Return a text that must be there, under the first of its names that is.

        Raises:
            RequestError: it is missing, blank or no text.
        """
        found = self.maybe_text(*names)
        if found is None:
            raise self._lacking(names)
        return found

    def maybe_text(self, *names: str) -> str | None:
        """Return a text without blanks around it, or None.

        Raises:
            RequestError: it is no text.
        """
        name = next((name for name in names if name in self), names[0])
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, f"is no text: {_shown(value)}")
        return value.strip() or None

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, or the only one; blank ones are left out.

        Raises:
            RequestError: it is neither.
        """
        value = self.values.get(name)
        listed = [value] if isinstance(value, str) else value or []
        if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
            raise self.wrong(name, f"is no list of texts: {_shown(value)}")
        return tuple(text.strip() for text in listed if text.strip())

    def answers(self, name: str) -> tuple[str, ...]:
        """Return all aliases of an answer, which may be a text, a number, or lists of them in any depth.

        Raises:
            RequestError: there is something else in it.
        """
        found: dict[str, None] = {}
        for one in _leaves(self.values.get(name)):
            if isinstance(one, bool) or not isinstance(one, str | int | float):
                raise self.wrong(name, f"holds no answer: {_shown(one)}")
            if str(one).strip():
                found[str(one).strip()] = None
        return tuple(found)

    def inner(self, name: str) -> "Fields":
        """Return the fields of an object that must be there.

        Raises:
            RequestError: it is missing or no object.
        """
        found = self.maybe_inner(name)
        if found is None:
            raise self._lacking((name,))
        return found

    def maybe_inner(self, name: str) -> "Fields | None":
        """Return the fields of an object, or None.

        Raises:
            RequestError: it is no object.
        """
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, f"is no object: {_shown(value)}")
        return Fields(values=value, path=self.named(name))

    def each(self, name: str) -> Iterator["Fields"]:
        """Yield the fields of each object of a list, which may be left out.

        Raises:
            RequestError: it is no list of objects.
        """
        value = self.values.get(name)
        if not isinstance(value, list | tuple | None):
            raise self.wrong(name, f"is no list of objects: {_shown(value)}")
        for place, one in enumerate(value or ()):
            path = f"{self.named(name)}[{place}]"
            if not isinstance(one, dict):
                raise RequestError(f"field '{path}' is no object: {_shown(one)}")
            yield Fields(values=one, path=path)

    def rest(self, used: Collection[str]) -> dict[str, Any]:
        """Return what no other part of a request takes up, for its ``extra``."""
        return {
            name: self.values[name] for name in self.values if name in self and name not in used
        }

    def named(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def wrong(self, name: str, problem: str) -> RequestError:
        """Return the complaint about a field."""
        return RequestError(f"field '{self.named(name)}' {problem}")

    def _lacking(self, names: tuple[str, ...]) -> RequestError:
        given = next((name for name in names if self.values.get(name) is not None), None)
        if given is not None:
            return self.wrong(given, "is empty")
        other = f" (or {' or '.join(map(repr, names[1:]))})" if names[1:] else ""
        return self.wrong(names[0], f"is missing{other}; found {self._present()}")

    def _present(self) -> str:
        """Return the names of the fields that say something, the first of them."""
        found = ", ".join(name for name in self.values if name in self)
        return shorten(found, _MOST + 20, placeholder=" …") or "none"


class Probes:
    """Collects the probes of one axis; those whose answer is blank are left out and named.

    Attributes:
        found: the probes so far.
        left_out: paths of answers that are blank; data sets have a few.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.found: list[Probe] = []
        self.left_out: list[str] = []

    def add(self, fields: Fields, prompt: str, answer: str, group: str) -> None:
        """Add the probe that two fields hold; none when there is no prompt.

        Raises:
            RequestError: one of them has the wrong type.
        """
        text, answers = fields.maybe_text(prompt), fields.answers(answer)
        if text is not None and answers:
            self.found.append(Probe(prompt=text, answers=answers, group=group))
        elif text is not None:
            self.left_out.append(fields.named(answer))

    def put(self, prompt: str, answers: tuple[str, ...], group: str, path: str) -> None:
        """Add a probe; none when it has no answer."""
        if answers:
            self.found.append(Probe(prompt=prompt, answers=answers, group=group))
        else:
            self.left_out.append(path)


def subject_in(prompt: str, fields: Fields, *names: str) -> tuple[str, tuple[int, int]]:
    """Return the subject as the prompt writes it, and the characters that hold it: its last occurrence.

    Where the prompt has it in other letters, capital or small, it is taken from there.

    Raises:
        RequestError: the subject is missing, or is not in the prompt.
    """
    subject = fields.text(*names)
    start = prompt.rfind(subject)
    if start >= 0:
        return subject, (start, start + len(subject))
    alike = list(re.finditer(re.escape(subject), prompt, re.IGNORECASE))
    if not alike:
        name = next((name for name in names if name in fields), names[0])
        raise fields.wrong(name, f"{subject!r} is not in the prompt {_shown(prompt)}")
    return alike[-1][0], alike[-1].span()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    elif value is not None:
        yield value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
