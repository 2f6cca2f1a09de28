"""Texts that no edit is about: from a file, or written by the unedited model; never those that are judged."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_core import EditRequest, TensorCache, Weights, encode
from kedit_core.digests import tokenizer_fingerprint
from kedit_core.errors import KeditError
from kedit_core.pieces import Projection
from kedit_core.tokens import beginning_of
from kedit_locate.sampling import sample, start_token
from kedit_wise.config import Routes
from kedit_wise.reading import read_by
from kedit_wise.routes import Prompts

_ROWS = 64  # written side by side


@frozen(kw_only=True)
class Texts:
    """Irrelevant texts as the edited projection reads them.

    Attributes:
        words: of each, for seeing what it is about.
        read: by the projection.
    """

    words: tuple[str, ...]
    read: Prompts

    @property
    def digest(self) -> str:
        """Return what these texts are known again by."""
        return hashlib.sha256("\0".join(self.words).encode()).hexdigest()[:16]

    def apart_from(self, requests: Sequence[EditRequest]) -> Tensor:
        """Return the places of the texts that name no subject of these edits, (texts,)."""
        subjects = {one.subject for one in requests if one.subject}
        places = [
            place
            for place, words in enumerate(self.words)
            if not any(subject in words for subject in subjects)
        ]
        return torch.tensor(places, dtype=torch.long)


def irrelevant_texts(
    model: nn.Module,
    tokenizer: Any,
    down: Projection,
    routes: Routes,
    seed: int,
    weights: Weights,
    cache: TensorCache,
) -> Texts:
    """Return irrelevant texts, read by the unedited model.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
        down: the projection whose inputs are kept.
        routes: how many texts, and where they come from.
        seed: of the draw.
        weights: of the model.
        cache: where inputs and what was written are kept.

    Raises:
        KeditError: the file cannot be read or holds no text.
    """
    key = _key(tokenizer, routes, seed, weights)

    def write() -> dict[str, Tensor]:
        with weights.original():
            return {"ids": _written(model, tokenizer, routes, seed).cpu()}

    def read() -> dict[str, Tensor]:
        with weights.original():
            found = read_by(model, down, rows)
        return {"inputs": found.inputs, "real": found.real.to(torch.uint8)}

    if routes.texts is None:
        first = 0 if beginning_of(tokenizer) else 1
        written = cache.get("texts", key, write)["ids"][:, first:]
        rows = [tuple(row) for row in written.tolist()]
    else:
        rows = _from_file(tokenizer, routes)
    kept = cache.get("inputs", {**key, "module": down.path}, read)
    return Texts(
        words=tuple(tokenizer.decode(row, skip_special_tokens=True) for row in rows),
        read=Prompts(inputs=kept["inputs"], real=kept["real"].bool()),
    )


def _key(tokenizer: Any, routes: Routes, seed: int, weights: Weights) -> dict[str, Any]:
    return {
        "model": weights.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "count": routes.count,
        "tokens": routes.tokens,
        "texts": _digest(routes.texts),
        "seed": seed if routes.texts is None else None,
    }


def _written(model: nn.Module, tokenizer: Any, routes: Routes, seed: int) -> Tensor:
    """Return what the model writes when nobody asks it for anything, (texts, tokens)."""
    chance = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    found = []
    for start in range(0, routes.count, _ROWS):
        rows = min(_ROWS, routes.count - start)
        begin = torch.full((rows, 1), start_token(tokenizer), device=device)
        found.append(sample(model, begin, routes.tokens, chance))
    return torch.cat(found)


def _from_file(tokenizer: Any, routes: Routes) -> list[tuple[int, ...]]:
    lines = [line.strip() for line in _text(str(routes.texts)).splitlines() if line.strip()]
    if not lines:
        raise KeditError(f"{routes.texts} holds no irrelevant text")
    found = encode(tokenizer, lines[: routes.count])
    return [one.ids[: routes.tokens] for one in found]


def _digest(texts: str | None) -> str | None:
    return None if texts is None else hashlib.sha256(_text(texts).encode()).hexdigest()[:16]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeditError(f"irrelevant texts {path} cannot be read ({reason})") from None
