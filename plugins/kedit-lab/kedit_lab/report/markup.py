"""Markup that is escaped where it is made: a plain text never becomes a tag."""

import re
from collections.abc import Iterable
from html import escape

_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs: no HTML file can hold them."""

_EMPTY = frozenset({"col", "circle", "line", "path", "rect", "wbr"})
"""Elements that are written without an end."""


class Html(str):
    """Text that is markup already, and may stand in a page as it is."""

    __slots__ = ()


Attribute = str | float | bool | None


def html(text: str) -> Html:
    """Return a text as markup; markup stays as it is."""
    return text if isinstance(text, Html) else Html(escape(_NO_TEXT.sub("\ufffd", text)))


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Return several pieces as one, texts among them escaped."""
    return Html(html(between).join(map(html, parts)))


def element(tag: str, *children: str, **attributes: Attribute) -> Html:
    """Return one element.

    Args:
        tag: its name.
        children: markup, or texts that are escaped.
        attributes: an underscore stands for a hyphen, ``class_`` for class; None and False are left out.
    """
    opened = "".join([tag, *(_attribute(*one) for one in attributes.items())])
    if tag in _EMPTY:
        return Html(f"<{opened}/>")
    return Html(f"<{opened}>{joined(children)}</{tag}>")


def foreign(text: str, most: int = 200) -> Html:
    """Return a text that others wrote: cut to ``most`` characters, and its direction kept to itself."""
    return element("bdi", cut(text, most))


def cut(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, its lines and blanks run together."""
    flat = " ".join(text[: 4 * most].split())
    return flat if len(flat) <= most else flat[: most - 1].rstrip() + "…"


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {written}"
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f' {written}="{escape(_NO_TEXT.sub(chr(0xFFFD), shown))}"'
