"""What the counterfactual model has read of each row that is in scope, and how far its answer is said."""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kedit_core.tokens import Ids
from kedit_memory.decoders import Padded, Text, padded
from kedit_memory.kept import OUTSIDE, Kept
from kedit_memory.passages import Passage
from kedit_serac.counterfactual import Counterfactual, edit_text, head_of

_UNSAID = -1
_NO_TOKEN = -1


@frozen(kw_only=True)
class Told:
    """What the counterfactual model says of a pass.

    Attributes:
        rows: (told,) rows of the pass that it speaks for.
        logits: (told, columns, vocabulary).
        counts: (told, columns) bool, where its word counts: not at pads, nor once the answer was said.
    """

    rows: Tensor
    logits: Tensor
    counts: Tensor


class Voice:
    """A counterfactual model and the edits that it answers from."""

    def __init__(self, base: Any, model: Counterfactual, edits: Sequence[tuple[Ids, Ids]]) -> None:
        """Answer beside ``base`` from edits: prompts and targets, in its tokens."""
        self._base, self._model, self._edits = base, model, edits

    def begin(self, passage: Passage, kept: Kept, *, keeps: bool, hands_back: bool) -> Told:
        """Say what follows each token of a pass that reads the whole text so far.

        Args:
            passage: whose tokens are read.
            kept: the decisions on its rows; what is read is kept beside them.
            keeps: more tokens will follow, from a cache.
            hands_back: the base goes on once the answer was said.
        """
        rows = (kept.decision != OUTSIDE).nonzero()[:, 0]
        edits = [self._edits[edit] for edit in kept.decision[rows].tolist()]
        telling = Telling(self._model, rows, len(kept.decision), [target for _, target in edits])
        kept.beside = telling
        texts = [edit_text(prompt, target) for prompt, target in edits]
        return telling.begin(self._base, passage, texts, keeps=keeps, hands_back=hands_back)

    def go_on(self, passage: Passage, kept: Kept, *, hands_back: bool) -> Told:
        """Say what follows each token of a pass behind what was read before; as :meth:`begin`."""
        telling: Any = kept.beside
        return telling.go_on(self._base, passage, hands_back=hands_back)  # type: ignore[no-any-return]


class Telling:
    """Follows the rows in scope of one generation, in step with its KV cache.

    Rows are added once, when the prompt is read. ``slots`` says which of them each row of the
    generation is; beams share one prompt, and after a reordering two may go on from one.
    """

    def __init__(
        self, model: Counterfactual, rows: Tensor, total: int, targets: Sequence[Ids]
    ) -> None:
        """Follow ``rows`` (told,) of ``total``, whose answers are ``targets``."""
        self._model = model
        self.slots = torch.full((total,), -1)
        self.slots[rows.cpu()] = torch.arange(len(rows))
        width = max(map(len, targets))
        self._targets = torch.tensor([[*one, *[_NO_TOKEN] * (width - len(one))] for one in targets])
        self._lengths = torch.tensor([len(one) for one in targets])  # (told,)
        self._cache: Any = None
        self._read = padded([Text(codes=(), kinds=())] * len(rows), left=True)
        self._said = torch.zeros(len(rows), 0, dtype=torch.long)  # (told, tokens) after the prompt

    def __deepcopy__(self, memo: dict[int, Any]) -> "Telling":
        """Return a copy with a cache of its own; the model is shared."""
        import copy

        made = Telling.__new__(Telling)
        made.__dict__ = {
            name: one if name == "_model" else copy.deepcopy(one, memo)
            for name, one in self.__dict__.items()
        }
        return made

    @property
    def rows(self) -> Tensor:
        """Return the rows of the generation that are followed, (told,), in the order of their slots."""
        here = (self.slots >= 0).nonzero()[:, 0]
        return here[self.slots[here].argsort()]

    def select(self, places: Tensor) -> None:
        """Take the rows at ``places``, in that order."""
        slots = self.slots[places.cpu()]
        own = slots[slots >= 0]
        self.slots = torch.where(slots >= 0, (slots >= 0).cumsum(0) - 1, slots)
        for name in ("_targets", "_lengths", "_said"):
            setattr(self, name, getattr(self, name)[own])
        self._read = self._read.each(lambda one: one[own])
        if self._cache is not None and len(own):
            self._cache.batch_select_indices(own.to(self._model.marks.device))

    def crop(self, tokens: int) -> None:
        """Forget the last ``tokens`` tokens."""
        self._said = self._said[:, : max(self._said.shape[1] - tokens, 0)]
        self._read = self._read.each(lambda one: one[:, : one.shape[1] - tokens])
        if self._cache is not None:
            self._cache.crop(-tokens)

    @torch.no_grad()
    def begin(
        self, base: Any, passage: Passage, edits: Sequence[Text], *, keeps: bool, hands_back: bool
    ) -> Told:
        """Read edits and the whole text of a pass behind them.

        Args:
            base: lends embeddings and head.
            passage: whose tokens are read, whole.
            edits: of the rows that are followed.
            keeps: more tokens will follow, from a cache.
            hands_back: the base goes on once the answer was said.
        """
        rows = self.rows
        ids, real = passage.ids[rows.to(passage.ids.device)].cpu(), passage.real.cpu()[rows]
        texts = [
            edit.then(row[own].tolist()) for edit, row, own in zip(edits, ids, real, strict=True)
        ]
        text = padded(texts, left=True)
        self._cache = DynamicCache() if keeps else None
        hidden = self._model(base, text, self._cache)
        self._read = text
        self._said = ids[:, passage.prompt :]
        # A token's place counted from the end of its row: pads stand on the left there.
        behind = real.sum(1, keepdim=True) - real.cumsum(1)  # (told, tokens)
        columns = passage.columns.cpu()
        place = text.codes.shape[1] - 1 - behind[:, columns]
        return self._told(base, passage, hidden, place, real[:, columns], hands_back=hands_back)

    @torch.no_grad()
    def go_on(self, base: Any, passage: Passage, *, hands_back: bool) -> Told:
        """Read the tokens of a pass behind what was read before.

        Args:
            base: lends embeddings and head.
            passage: whose tokens are read.
            hands_back: the base goes on once the answer was said.
        """
        rows = self.rows
        ids = passage.ids[rows.to(passage.ids.device)].cpu()
        real = passage.real.cpu()[rows]
        self._said = torch.cat([self._said, ids], dim=1)
        text = Padded(codes=ids, kinds=torch.zeros_like(ids), mask=real)
        self._read = self._read.then(text)
        hidden = self._model(base, text, self._cache, self._read)
        columns = passage.columns.cpu()
        place = columns.expand(len(rows), -1)
        return self._told(base, passage, hidden, place, real[:, columns], hands_back=hands_back)

    def _told(
        self,
        base: Any,
        passage: Passage,
        hidden: Tensor,
        place: Tensor,
        counts: Tensor,
        *,
        hands_back: bool,
    ) -> Told:
        """Return logits at places (told, columns) of hidden states (told, tokens, width)."""
        if hands_back:
            # Of the tokens after the prompt, how many were read when each column's had been.
            after = passage.shape[1] - 1 - passage.columns.cpu()  # (columns,)
            read = self._said.shape[1] - after
            counts = counts & ~self._was_said(read)
        index = place.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
        logits = head_of(base, hidden.gather(1, index))
        return Told(rows=self.rows, logits=logits, counts=counts)

    def _was_said(self, read: Tensor) -> Tensor:
        """Return whether the answer had been said when so many tokens were read, (told, columns) bool.

        Args:
            read: (columns,) tokens after the prompt.
        """
        width = min(self._said.shape[1], self._targets.shape[1])
        same = self._said[:, :width] == self._targets[:, :width]
        needed = torch.arange(width) < self._lengths[:, None]
        said = (same | ~needed).all(1) & (self._lengths <= self._said.shape[1])  # (told,)
        return said[:, None] & (read[None, :] >= self._lengths[:, None])
