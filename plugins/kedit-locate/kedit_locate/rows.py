"""Prompts as rows of token ids, with the place of the subject and of the target."""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core import EditRequest, encode
from kedit_core.errors import RequestError
from kedit_core.tokens import encode_target


@frozen(kw_only=True)
class Row:
    """One text of an edit.

    Attributes:
        ids: prompt, then all tokens of the target but the last.
        lookup: position of the subject's last token, where the fact is written.
        target: ids to say; the first is predicted at position ``len(ids) - len(target)``. Empty for
            an anchor.
    """

    ids: tuple[int, ...]
    lookup: int
    target: tuple[int, ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        """Return the ids up to the subject's last token: all that its key depends on."""
        return self.ids[: self.lookup + 1]


@frozen(kw_only=True)
class EditRows:
    """All texts of one edit.

    Attributes:
        rewrites: the prompt behind every prefix, the bare one first.
        anchor: the subject alone, where the model's next word shall stay as it was.
        words: what the edit is called when it has to be named.
    """

    rewrites: tuple[Row, ...]
    anchor: Row
    words: str = ""


def edit_rows(
    tokenizer: Any, request: EditRequest, prefixes: Sequence[str], *, chat: bool = False
) -> EditRows:
    """Return the rows of one edit.

    The anchor is read at the subject's last token of "<subject> is a": by causality the words after
    it do not matter, so the row ends there.

    Args:
        tokenizer: of the model.
        request: with a subject.
        prefixes: texts to put before the prompt, the bare one first.
        chat: render each text through the chat template.

    Raises:
        RequestError: the request has no subject, or the subject has no token.
    """
    if request.subject is None or request.subject_span is None:
        raise RequestError(f"the subject of {request.prompt!r} is needed")
    start, end = request.subject_span
    rewrites = []
    for prefix in prefixes:
        read = encode(tokenizer, [prefix + request.prompt], chat)[0]
        target = encode_target(tokenizer, read, request.joiner + request.target_new)
        lookup = read.last_token_of((start + len(prefix), end + len(prefix)))
        rewrites.append(Row(ids=read.ids + target[:-1], lookup=lookup, target=target))
    alone = encode(tokenizer, [f"{request.subject} is a"], chat)[0]
    lookup = alone.last_token_of((0, len(request.subject)))
    return EditRows(
        rewrites=tuple(rewrites),
        anchor=Row(ids=alone.ids[: lookup + 1], lookup=lookup),
        words=words_of(request),
    )


def words_of(request: EditRequest) -> str:
    """Return what an edit is called when it has to be named: its prompt and its target."""
    return f"{request.prompt!r} → {request.target_new!r}"


def padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return ids and mask (rows, tokens) of rows padded on the right."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor(
        [[*row, *[0] * (width - len(row))] for row in rows], device=device, dtype=torch.long
    )
    mask = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device, dtype=torch.long
    )
    return ids.reshape(len(rows), width), mask.reshape(len(rows), width)
