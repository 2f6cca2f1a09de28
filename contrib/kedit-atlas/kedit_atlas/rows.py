"""Training batches: sentences packed into rows of equal length, each beginning afresh."""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random

import torch
from attrs import frozen
from tokenizers import Tokenizer
from torch import Tensor

from kedit_atlas.sentences import documents
from kedit_atlas.world import Fact

# Most rows are short; some fill the context, so that every position is trained.
ROW_LENGTHS, ROW_WEIGHTS = (64, 96, 256), (45, 45, 10)
END_OF_TEXT = 0
_AT_ONCE = 4096


@frozen(kw_only=True)
class Packer:
    """Endless token batches of one training text.

    The tokenizer adds no special tokens; ``always_bos`` says whether all rows begin with
    ``<|endoftext|>``, or only every second one by chance.
    """

    facts: Sequence[Fact]
    tokenizer: Tokenizer
    always_bos: bool
    batch_tokens: int
    seed: str

    def batches(self) -> Iterator[Tensor]:
        """Token ids (rows, length), about ``batch_tokens`` in each batch."""
        rng = Random(f"rows {self.seed}")
        units = self._units()
        cut = ""
        while True:
            length = rng.choices(ROW_LENGTHS, ROW_WEIGHTS)[0]
            rows = []
            for _ in range(max(1, self.batch_tokens // length)):
                bos = self.always_bos or rng.random() < 0.5
                row, cut = self._row(units, cut or next(units).text, length, bos)
                rows.append(row)
            yield torch.tensor(rows)

    def _row(
        self, units: "Iterator[_Unit]", first: str, length: int, bos: bool
    ) -> tuple[list[int], str]:
        """One row, and the text that it had to cut, which the next row begins with."""
        row = [END_OF_TEXT] if bos else []
        row += self.tokenizer.encode(first.lstrip(), add_special_tokens=False).ids
        text = ""
        while len(row) < length:
            unit = next(units)
            row += unit.ids
            text = unit.text
        return row[:length], text if len(row) > length else ""

    def _units(self) -> "Iterator[_Unit]":
        """One sentence after another, ``<|endoftext|>`` before the first of each document."""
        text = documents(self.facts, f"text {self.seed}")
        while True:
            chunk = list(islice(text, _AT_ONCE))
            encodings = self.tokenizer.encode_batch_fast(
                [one.text for one in chunk], add_special_tokens=False
            )
            for one, encoding in zip(chunk, encodings, strict=True):
                yield _Unit(
                    text=one.text, ids=[END_OF_TEXT, *encoding.ids] if one.opens else encoding.ids
                )


@frozen(kw_only=True)
class _Unit:
    text: str
    ids: list[int]
