"""The counterfactual model: what the base would say if an edit were true.

A small decoder between the embeddings and the head of the base, which stay as they are. It reads

    edit prompt | target | query

with learned marks in the places of the bars, and says what follows the query. Half of what it is trained on
are targets of random tokens, so it cannot know the answers and learns to copy them.
"""

from typing import Any

import torch
from torch import Tensor

from kedit_core.tokens import Ids
from kedit_memory.decoders import PLAIN, Decoder, Shape, Text

BETWEEN, BEHIND = -1, -2
"""What stands in the places of the bars, among token ids: before and behind the target."""

_PROMPT, _TARGET = 1, 2  # kinds of tokens; those of the query are plain


class Counterfactual(Decoder):
    """A decoder that reads an edit and a query."""

    def __init__(self, shape: Shape) -> None:
        """Make one with random weights."""
        super().__init__(shape, marks=2, kinds=2)

    def head(self, base: Any, hidden: Tensor) -> Tensor:
        """Return logits (…, vocabulary of the base) of hidden states, by the head of the base."""
        return head_of(base, hidden)

    def vocabulary(self, base: Any) -> int:
        """Return below which number the token ids are that it says."""
        return int(base.get_output_embeddings().weight.shape[0])

    def beside(self, weight: Tensor) -> "Counterfactual":
        """Return it on the device and in the dtype of a weight of the base."""
        return self.to(weight)


def edit_text(prompt: Ids, target: Ids) -> Text:
    """Return what stands before a query: an edit."""
    codes = (*prompt, BETWEEN, *target, BEHIND)
    kinds = (*[_PROMPT] * len(prompt), PLAIN, *[_TARGET] * len(target), PLAIN)
    return Text(codes=codes, kinds=kinds)


def head_of(base: Any, hidden: Tensor) -> Tensor:
    """Return logits (…, vocabulary) of hidden states, by the head of the base."""
    head = base.get_output_embeddings()
    weight = head.weight
    logits: Tensor = head(hidden.to(device=weight.device, dtype=weight.dtype))
    return logits


def new_counterfactual(shape: Shape, seed: int) -> Counterfactual:
    """Return a model with seeded random weights; no global random state moves."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Counterfactual(shape)
