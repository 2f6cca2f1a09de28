"""The counterfactual model: what the base would say if an edit were true.

A small decoder between the embeddings and the head of the base, which stay as they are. It reads

    edit prompt | target | query

with learned marks in the places of the bars, and says what follows the query. Half of what it is trained on
are targets of random tokens, so it cannot know the answers and learns to copy them; a pointer into the target
(``pointing``) shows it where they stand.
"""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from random import Random
from typing import Any

import torch
from torch import Tensor

from kedit_core.tokens import Ids
from kedit_memory.decoders import PLAIN, Decoder, Padded, Shape, Text
from kedit_serac.pointing import Pointer

BETWEEN, BEHIND = -1, -2
"""What stands in the places of the bars, among token ids: before and behind the target."""

_PROMPT, _TARGET = 1, 2  # kinds of tokens; those of the query are plain
_CANDIDATES, _AT_ONCE = 4096, 256


class Counterfactual(Decoder):
    """A decoder that reads an edit and a query."""

    def __init__(self, shape: Shape) -> None:
        """Make one with random weights."""
        super().__init__(shape, marks=2, kinds=2)
        self.pointer = Pointer(shape.width)

    def forward(
        self, base: Any, text: Padded, cache: Any = None, whole: Padded | None = None
    ) -> Any:
        """Return hidden states (rows, tokens, width), as :meth:`Decoder.forward`, and what is pointed at."""
        hidden = super().forward(base, text, cache, whole)
        codes, kinds = (text.codes, text.kinds) if whole is None else (whole.codes, whole.kinds)
        ours = kinds == _TARGET
        most = int(ours.sum(1).max())
        places = ours.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        earlier = (places - 1).clamp(min=0)
        return hidden + self.pointer(
            base,
            hidden,
            self.words(base, text.codes, text.kinds),
            self.words(base, codes.gather(1, earlier), kinds.gather(1, earlier)),
            codes.gather(1, places).clamp(min=0),
            ours.gather(1, places),
        )

    def head(self, base: Any, hidden: Tensor) -> Tensor:
        """Return logits (…, vocabulary of the base) of hidden states, by the head of the base."""
        return head_of(base, hidden)

    @torch.no_grad()
    def sayable(self, base: Any) -> tuple[int, ...]:
        """Return token ids that the head of the base can give, of a seeded sample of at most 4,096.

        Vocabularies hold tokens that their model never learned; what one of these is learned from is lost.
        A token counts where its own row of the head says it; all of them do where none does.
        """
        weight = base.get_output_embeddings().weight
        some = Random(0).sample(range(len(weight)), min(len(weight), _CANDIDATES))
        found: list[int] = []
        for ids in torch.split(torch.tensor(sorted(some), device=weight.device), _AT_ONCE):
            found += ids[head_of(base, weight[ids]).argmax(-1) == ids].tolist()
        return tuple(found or sorted(some))

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
