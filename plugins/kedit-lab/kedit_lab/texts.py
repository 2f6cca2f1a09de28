"""Texts that a request brings in its ``extra``."""

from kedit_core import EditRequest
from kedit_core.errors import RequestError


def texts_of(request: EditRequest, name: str) -> tuple[str, ...]:
    """Return the texts that ``extra`` has under a name: one, several, or none where it says nothing.

    Raises:
        RequestError: something else stands there.
    """
    found = request.extra.get(name) or ()
    texts = (found,) if isinstance(found, str) else found
    if not isinstance(texts, list | tuple) or not all(
        isinstance(text, str) and text.strip() for text in texts
    ):
        raise RequestError(f"extra.{name} of {request.prompt!r} is {found!r}, not a list of texts")
    return tuple(texts)
