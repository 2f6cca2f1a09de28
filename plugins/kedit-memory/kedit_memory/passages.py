"""One forward pass of a model as a memory sees it: which tokens it reads, and what is kept of its prompt."""

import inspect
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_memory.kept import OUTSIDE, Kept

log = logging.getLogger(__name__)


class Passage:
    """One forward pass.

    Attributes:
        given: the arguments of the forward by name.
        whole: nothing was read before, so these tokens are the whole text so far.
        kept: what is kept of each row; None until :meth:`settle` while a prompt is read.
        pooled: what modules noted of the prompt on the way, by name.
    """

    def __init__(
        self, given: Mapping[str, Any], *, whole: bool, kept: Kept | None, prompt: int | None
    ) -> None:
        """Begin a pass; ``prompt`` says how many of its tokens are the prompt, None that all are."""
        self.given, self.whole, self.kept = given, whole, kept
        self.pooled: dict[str, Tensor] = {}
        self._prompt = prompt

    @cached_property
    def ids(self) -> Tensor:
        """Return what is read, (rows, tokens).

        Raises:
            ModelError: the model was called with embeddings.
        """
        ids = self.given.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ModelError(
                "inputs_embeds", "were given, but this memory answers from input_ids; give those"
            )
        return ids

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Return (rows, tokens) of this pass."""
        ids = self.given.get("input_ids")
        read: Tensor = ids if isinstance(ids, Tensor) else self.given["inputs_embeds"]
        return read.shape[0], read.shape[1]

    @cached_property
    def real(self) -> Tensor:
        """Return which of the tokens of this pass are no pads, (rows, tokens) bool."""
        rows, tokens = self.shape
        mask = self.given.get("attention_mask")
        if isinstance(mask, Mapping):
            mask = mask.get("full_attention", next(iter(mask.values())))
        if mask is None:
            device = next(
                one.device
                for one in self.given.values()
                if isinstance(one, Tensor) and one.ndim > 1
            )
            return torch.ones(rows, tokens, dtype=torch.bool, device=device)
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            raise ModelError(
                "attention_mask", f"is {type(mask).__name__}; (rows, tokens) is needed to find pads"
            )
        if mask.ndim == 4:  # what the last token attends to; additive masks hold 0 there
            seen = mask[:, 0, -1]
            mask = seen if seen.dtype == torch.bool else seen == 0
            read = tokens if self.whole else mask.shape[1]
            return mask[:, :read][:, -tokens:].expand(rows, tokens)
        return mask[:, -tokens:].bool()

    @property
    def prompt(self) -> int:
        """Return how many of the tokens of a whole pass are the prompt, pads included."""
        tokens = self.shape[1]
        return tokens if self._prompt is None else min(self._prompt, tokens)

    @cached_property
    def prompts(self) -> Tensor:
        """Return which tokens of a whole pass are the prompt's and no pads, (rows, tokens) bool."""
        if self.prompt == self.shape[1]:
            return self.real
        places = torch.arange(self.shape[1], device=self.real.device)
        return self.real & (places < self.prompt)

    @property
    def reads_a_prompt(self) -> bool:
        """Tell whether a decision is still to be taken."""
        return self.kept is None

    @property
    def columns(self) -> Tensor:
        """Return for which tokens of this pass the model gives logits, (columns,)."""
        tokens, wanted = self.shape[1], self.given.get("logits_to_keep", 0)
        places = torch.arange(tokens, device=self.real.device)
        if isinstance(wanted, Tensor):
            return places[wanted.to(places.device)]
        return places[-wanted:] if wanted else places

    def settle(self, decision: Tensor, probability: Tensor | None = None) -> Kept:
        """Keep a decision for these rows and what follows them; the log hears it at level debug.

        Args:
            decision: (rows,) int64, an entry each or ``OUTSIDE``.
            probability: (rows,) of being in scope, for the log.
        """
        self.kept = Kept(decision, self.prompt)
        if log.isEnabledFor(logging.DEBUG):
            likely = [None] * len(decision) if probability is None else probability.tolist()
            for row, (entry, one) in enumerate(zip(decision.tolist(), likely, strict=True)):
                where = "outside" if entry == OUTSIDE else f"entry {entry}"
                log.debug("row %d: %s%s", row, where, "" if one is None else f", p {one:.3f}")
        return self.kept


def outside(rows: int) -> Kept:
    """Return what is kept of rows of which nothing is known: they began before there was a memory."""
    return Kept(torch.full((rows,), OUTSIDE), 0)


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module's forward by name."""
    if not args:
        return dict(kwargs)
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
