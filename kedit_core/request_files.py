"""Request files: one JSON object a line, with the fields of an edit request."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import asdict, fields

from kedit_core.config import load_config
from kedit_core.errors import ConfigError, RequestError, did_you_mean
from kedit_core.requests import EditRequest, Probe

_FIELDS = tuple(attribute.name for attribute in fields(EditRequest))
_TEXTS = ("prompt", "subject", "target_new", "target_true", "joiner")


def read_json_lines(source: str | Path) -> Iterable[EditRequest | RequestError]:
    """Return the requests of a file; a line that cannot be read is a RequestError in its place.

    Raises:
        RequestError: the file is missing or holds no request.
    """
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot be read ({error.strerror})", str(path)) from None
    except ValueError as error:  # a null byte in the name is one, too
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RequestError(f"cannot be read ({reason})", str(path)) from None
    if not text.strip():
        raise RequestError("holds no request", str(path))
    return list(_read(path, text))


def request_from(record: Any) -> EditRequest:
    """Return the request that a JSON object describes.

    Raises:
        RequestError: a field is missing, unknown or of the wrong type.
    """
    if not isinstance(record, dict):
        raise RequestError(f"expected an object, found {type(record).__name__}")
    for name in record:
        if name not in _FIELDS:
            raise RequestError(f"unknown field {name!r}{did_you_mean(name, _FIELDS)}")
    for name in ("prompt", "target_new"):
        if record.get(name) is None:
            raise RequestError(f"field {name!r} is missing")
    for name in _TEXTS:
        if not isinstance(record.get(name), str | None):
            raise RequestError(f"field {name!r} is no text: {record[name]!r}")
    span = record.get("subject_span")
    probes = {name: _probes(name, record.get(name)) for name in ("locality", "portability")}
    texts = _string_list("paraphrases", record.get("paraphrases"))
    if not isinstance(record.get("extra"), dict | None):
        raise RequestError(f"field 'extra' is no object: {record['extra']!r}")
    values = {**record, **probes, "paraphrases": texts, "subject_span": _span(span)}
    return EditRequest(**values)


def record_of(request: EditRequest) -> dict[str, Any]:
    """Return a request as plain JSON values; ``request_from`` reads them back."""
    return asdict(request)


def _read(path: Path, text: str) -> Iterator[EditRequest | RequestError]:
    # Not splitlines: that also splits at U+2028 and its like, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield request_from(json.loads(line, object_pairs_hook=_once))
        except json.JSONDecodeError as error:
            yield RequestError(f"is not JSON: {error.msg} at column {error.colno}", where)
        except RequestError as error:
            yield RequestError(error.problem, where)
        except (ValueError, RecursionError) as error:
            yield RequestError(f"cannot be read as JSON ({error})", where)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object whose names are each given once; JSON would silently take the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RequestError(f"field {name!r} is given twice")
        found[name] = value
    return found


def _probes(name: str, found: Any) -> tuple[Probe, ...]:
    if found is None:
        return ()
    if not isinstance(found, list | tuple) or not all(isinstance(probe, dict) for probe in found):
        raise RequestError(
            f"field {name!r} is no list of probes, each with prompt, answers and maybe group"
        )
    return tuple(_probe(probe, f"{name}[{place}]") for place, probe in enumerate(found))


def _probe(found: dict[str, Any], where: str) -> Probe:
    answers = found.get("answers")
    listed = {"answers": [answers]} if isinstance(answers, str) else {}
    try:
        return load_config(Probe, {**found, **listed}, where=where)
    except ConfigError as error:
        raise RequestError(str(error)) from None


def _string_list(name: str, found: Any) -> tuple[str, ...]:
    if found is None:
        return ()
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise RequestError(f"field {name!r} is no list of texts")
    return tuple(found)


def _span(found: Any) -> tuple[int, int] | None:
    if found is None:
        return None
    if (
        isinstance(found, list | tuple)
        and len(found) == 2
        and all(type(edge) is int for edge in found)
    ):
        return found[0], found[1]
    raise RequestError(f"field 'subject_span' is no pair of positions: {found!r}")
