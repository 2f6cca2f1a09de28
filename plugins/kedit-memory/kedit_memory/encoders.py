"""Prompts as a text encoder sees them: any model of a folder or of the hub, frozen, with its own tokenizer.

A memory holds no copy of the encoder, only what it is known again by: its name, and digests of its weights and
of its tokenizer. So whoever uses the memory needs the same encoder, and any other one is refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, field, frozen, validators
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging
from transformers.utils.hub import cached_file

from kedit_core.digests import state_digest, tokenizer_fingerprint
from kedit_core.errors import KeditError

POOLINGS = ("mean", "first", "last")
"""What is taken of the last hidden states of a text: their mean over its tokens, or one token's."""

_ROWS, _TOKENS = 64, 4096
_LONGEST = 512
_BROKEN = (OSError, ValueError, KeyError, ImportError, RuntimeError)
_RESERVED = 2  # positions that some families begin behind


@frozen(kw_only=True)
class Encoder:
    """What an encoder is known again by.

    Attributes:
        name: folder or hub id.
        pooling: one of ``POOLINGS``.
        weights: digest of its weights in float32.
        tokenizer: fingerprint of its tokenizer.
    """

    name: str
    pooling: str = field(validator=validators.in_(POOLINGS))
    weights: str = field(repr=False)
    tokenizer: str = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


class TextEncoder:
    """An encoder that is open.

    Attributes:
        known_by: what it is known again by.
        width: of the states it gives.
    """

    def __init__(self, model: Any, tokenizer: Any, known_by: Encoder) -> None:
        """Read with a frozen model in ``eval`` mode and its tokenizer."""
        self._model, self._tokenizer, self.known_by = model, tokenizer, known_by
        self.width = int(model.config.hidden_size)
        positions = getattr(model.config, "max_position_embeddings", None) or _LONGEST
        self._most = max(1, min(tokenizer.model_max_length, positions - _RESERVED))
        self._pad = tokenizer.pad_token_id or 0

    def on(self, device: torch.device | str) -> "TextEncoder":
        """Return itself, from now on on a device."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def states(self, texts: Sequence[str], *, alone: bool) -> Tensor:
        """Return the pooled last hidden states of texts, (texts, width) float32 on the encoder's device.

        A text that is too long keeps its end. One without any token is all zeros.

        Args:
            texts: to read.
            alone: each by itself: what comes back is then the same bits whatever else is asked.
        """
        read = self._read(list(texts))
        found = self._zeros(len(texts), self.width)
        for places in _batches([len(one) for one in read["input_ids"]], 1 if alone else _ROWS):
            hidden, real = self._hidden(read, places)
            found[places] = _pooled(hidden, real, self.known_by.pooling)
        return found

    @torch.no_grad()
    def pair_states(self, firsts: Sequence[str], seconds: Sequence[str]) -> Tensor:
        """Return states of pairs of texts, each read as one: the mean and the first token's side by side.

        Args:
            firsts: (pairs,) of the pairs; of a pair that is too long the longer text loses what it begins with.
            seconds: (pairs,) likewise.

        Returns:
            (pairs, 2 · width) float32 on the encoder's device.
        """
        read = self._read(list(firsts), list(seconds))
        found = self._zeros(len(firsts), 2 * self.width)
        for places in _batches([len(one) for one in read["input_ids"]], _ROWS):
            hidden, real = self._hidden(read, places)
            both = [_pooled(hidden, real, pooling) for pooling in ("mean", "first")]
            found[places] = torch.cat(both, dim=1)
        return found

    def _read(self, *texts: list[str]) -> Mapping[str, Sequence[Sequence[int]]]:
        if not texts[0]:
            return {"input_ids": []}
        found: Mapping[str, Sequence[Sequence[int]]] = self._tokenizer(
            *texts, truncation=True, max_length=self._most
        )
        return found

    def _zeros(self, rows: int, width: int) -> Tensor:
        return torch.zeros(rows, width, device=next(self._model.parameters()).device)

    def _hidden(
        self, read: Mapping[str, Sequence[Sequence[int]]], places: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return last hidden states (rows, tokens, width) and which tokens are no pads (rows, tokens)."""
        device = next(self._model.parameters()).device

        def table(name: str, fill: int) -> Tensor:
            rows = [torch.tensor(read[name][place]) for place in places]
            return pad_sequence(rows, batch_first=True, padding_value=fill).to(device)

        given = {"input_ids": table("input_ids", self._pad)}
        lengths = torch.tensor([len(read["input_ids"][place]) for place in places], device=device)
        real = torch.arange(given["input_ids"].shape[1], device=device) < lengths[:, None]
        if "token_type_ids" in read:  # which of two texts a token is of
            given["token_type_ids"] = table("token_type_ids", 0)
        said = self._model(**given, attention_mask=real.long())
        return said.last_hidden_state, real


def _pooled(hidden: Tensor, real: Tensor, pooling: str) -> Tensor:
    """Return one vector a row of hidden states (rows, tokens, width), padded on the right."""
    if pooling == "mean":
        kept = torch.where(real[..., None], hidden, 0.0)
        return kept.sum(1) / real.sum(1, keepdim=True)
    last = real.sum(1) - 1 if pooling == "last" else torch.zeros_like(real.sum(1))
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield places of texts of like length, without those that have no token."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda one: lengths[one]):
        tokens = lengths[place]
        if not tokens:
            continue
        if batch and (len(batch) == most or (len(batch) + 1) * tokens > _TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def described(name: str, pooling: str | None = None) -> Encoder:
    """Return what an encoder is known by; one of the hub that is not on this machine is downloaded.

    Args:
        name: folder or hub id.
        pooling: one of ``POOLINGS``; None takes what the folder says of itself (sentence-transformers), or else
            the mean.

    Raises:
        KeditError: there is no such encoder.
    """
    return _loaded(name, pooling, local=False).known_by


def opened(encoder: Encoder, device: torch.device | str = "cpu") -> TextEncoder:
    """Return an encoder that a memory or a checkpoint names, open; nothing is downloaded.

    Args:
        encoder: what it is known by.
        device: to read on.

    Raises:
        KeditError: it is not on this machine, or what lies there is another one.
    """
    found = _loaded(encoder.name, encoder.pooling, local=True)
    differs = [
        name for name, one in asdict(encoder).items() if one != getattr(found.known_by, name)
    ]
    if differs:
        raise KeditError(
            f"encoder {encoder.name} has other {' and '.join(differs)} than the one that this scope classifier "
            "was trained with; put that one back, or train again"
        )
    return found.on(device)


def encoder_from(said: Mapping[str, Any]) -> Encoder:
    """Return what JSON values say an encoder is known by.

    Raises:
        TypeError: something of it is missing.
        ValueError: it is pooled in an unknown way.
    """
    return Encoder(**said)


def _loaded(name: str, pooling: str | None, *, local: bool) -> TextEncoder:
    """Return an open encoder; the last two are kept as long as their files stay as they are."""
    folder = Path(name)
    files = sorted(one for one in folder.rglob("*") if one.is_file()) if folder.is_dir() else []
    stamps = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    try:
        return _kept(name, pooling, local or bool(files), tuple(stamps))
    except (*_BROKEN, SafetensorError) as error:
        what = "is not on this machine" if local else "cannot be opened"
        first = str(error).strip().partition("\n")[0]
        raise KeditError(
            f"encoder {name} {what}; name a folder, or fetch it from the hub with hf download {name} ({first})"
        ) from None


@lru_cache(maxsize=2)
def _kept(
    name: str, pooling: str | None, local: bool, _: tuple[tuple[str, int, int], ...]
) -> TextEncoder:
    how: dict[str, Any] = {"local_files_only": local}
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(name, **how)
        made: Any = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **how
        )
    model, info = made
    missing = {one for one in info["missing_keys"] if "pooler" not in one}
    if missing:
        raise ValueError(f"it has no weights for {', '.join(sorted(missing)[:3])}")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # made at random where the file has none; not read here
    known = Encoder(
        name=name,
        pooling=pooling or _own_pooling(name, how),
        weights=state_digest(model),
        tokenizer=tokenizer_fingerprint(tokenizer),
    )
    tokenizer.truncation_side = "left"  # a prompt's question stands at its end
    return TextEncoder(model.requires_grad_(False).eval(), tokenizer, known)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and from reporting weights that are not read here."""
    shown, loud = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(loud)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _own_pooling(name: str, how: Mapping[str, Any]) -> str:
    """Return the pooling that an encoder of sentence-transformers names, else the mean."""
    path = cached_file(
        name, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False, **how
    )
    if path is None:
        return "mean"
    said = json.loads(Path(path).read_text(encoding="utf-8"))
    if said.get("pooling_mode_cls_token"):
        return "first"
    return "last" if said.get("pooling_mode_lasttoken") else "mean"
