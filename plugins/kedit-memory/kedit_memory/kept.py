"""What is kept of each sequence of a generation: the decision taken on its prompt, and what a method adds.

It lives in the KV cache of the generation and goes where that goes: a copy of the cache has a copy of it,
what reorders, repeats, selects or crops the cache does the same to it, and it is freed with the cache.
"""

from functools import cache as once
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kedit_core.errors import ModelError

OUTSIDE = -1
"""The decision for a sequence that is in the scope of nothing."""

_KEPT = "_kedit_kept"


class Rows(Protocol):
    """What a method keeps beside the decisions, one row for each sequence, such as a cache of its own."""

    def select(self, places: Tensor) -> None:
        """Take the rows at ``places`` (new rows,), in that order."""

    def crop(self, tokens: int) -> None:
        """Forget the last ``tokens`` tokens."""


class Owner:
    """Whose decisions these are; one memory, however often caches that hold it are copied."""

    def __deepcopy__(self, _: Any) -> "Owner":
        """Return the same owner."""
        return self


class Kept:
    """The decision of each sequence.

    Attributes:
        decision: (rows,) int64, which entry of the memory each row goes to, ``OUTSIDE`` for none.
        inside: whether any row goes to an entry.
        prompt: tokens of the prompt, pads included, that the decision was taken on.
        beside: what else the method keeps of each row, or None.
    """

    def __init__(self, decision: Tensor, prompt: int, beside: Rows | None = None) -> None:
        """Keep ``decision``, taken on the first ``prompt`` tokens."""
        self.decision, self.prompt, self.beside = decision, prompt, beside
        self.inside = bool((decision != OUTSIDE).any())

    def select(self, places: Tensor) -> None:
        """Take the rows at ``places`` (new rows,), in that order."""
        self.decision = self.decision[places.to(self.decision.device)]
        self.inside = bool((self.decision != OUTSIDE).any())
        if self.beside is not None:
            self.beside.select(places)

    def crop(self, tokens: int) -> None:
        """Forget the last ``tokens`` tokens."""
        if self.beside is not None and tokens > 0:
            self.beside.crop(tokens)


def keep(cache: Any, owner: Owner, kept: Kept) -> None:
    """Let a KV cache carry what is kept of its sequences.

    Args:
        cache: of transformers; from now on of a subclass that takes it along.
        owner: whose it is; others keep theirs in the same cache.
        kept: one row for each row of the cache.

    Raises:
        ModelError: what the model keeps of its prompt is no cache of transformers.
    """
    if not isinstance(cache, Cache):
        raise ModelError(
            type(cache).__name__,
            "is no cache of transformers, so no decision can be kept in it; generate with use_cache=False",
        )
    if not hasattr(cache, _KEPT):
        setattr(cache, _KEPT, {})
        kind: Any = type(cache)
        cache.__class__ = _following(kind)
    getattr(cache, _KEPT)[owner] = kept


def kept_in(cache: Any, owner: Owner) -> Kept | None:
    """Return what a KV cache carries for ``owner``, or None."""
    found: Kept | None = getattr(cache, _KEPT, {}).get(owner)
    return found


def is_empty(cache: Any) -> bool:
    """Tell whether nothing was read into a cache yet; None is empty too."""
    length = getattr(cache, "get_seq_length", None)
    return cache is None or (length is not None and not int(length()))


@once
def _following(kind: Any) -> Any:
    """Return a subclass of a cache that does to what it carries what is done to it."""

    class Following(kind):  # type: ignore[misc]
        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._select_kept(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            self._select_kept(indices)

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            for kept in getattr(self, _KEPT).values():
                rows = torch.arange(len(kept.decision), device=kept.decision.device)
                kept.select(rows.repeat_interleave(repeats))

        def crop(self, tokens: int) -> None:
            before = int(self.get_seq_length())
            super().crop(tokens)
            left = int(self.get_seq_length())
            if not left:
                getattr(self, _KEPT).clear()
            for kept in getattr(self, _KEPT).values():
                kept.crop(before - left)

        def reset(self) -> None:
            super().reset()
            getattr(self, _KEPT).clear()

        def _select_kept(self, places: Tensor) -> None:
            for kept in getattr(self, _KEPT).values():
                kept.select(places)

    Following.__name__, Following.__qualname__ = kind.__name__, kind.__qualname__
    return Following
