"""The counterfactual model: what the base would say if an edit were true.

A small decoder between the embeddings and the head of the base, which stay as they are. It reads

    edit prompt | target | query

with learned marks in the places of the bars, and says what follows the query. Half of what it is trained on
are targets of random tokens, so it cannot know the answers and learns to copy them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from kedit_core.tokens import Ids

BETWEEN, BEHIND = -1, -2
"""What stands in the places of the bars, among token ids: before and behind the target."""

_QUERY, _PROMPT, _TARGET = 0, 1, 2
_CONTEXT = 8192
_SIZE = 0.1  # of the components of an embedding


@frozen(kw_only=True)
class Shape:
    """How large a counterfactual model is.

    Attributes:
        width: of the base.
        inner: width of the MLPs.
        blocks: of the decoder.
        heads: of its attention.
        scale: what embeddings of the base are multiplied with, so that what the blocks add soon outweighs them.
    """

    width: int
    inner: int
    blocks: int
    heads: int
    scale: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@frozen(kw_only=True)
class Text:
    """What the model reads of one row.

    Attributes:
        codes: token ids, ``BETWEEN`` and ``BEHIND``.
        kinds: per code whether it is of the query, of the edit's prompt or of its target.
    """

    codes: tuple[int, ...]
    kinds: tuple[int, ...]

    def then(self, ids: Sequence[int]) -> "Text":
        """Return the same with token ids of a query behind it."""
        return Text(codes=(*self.codes, *ids), kinds=(*self.kinds, *[_QUERY] * len(ids)))


def edit_text(prompt: Ids, target: Ids) -> Text:
    """Return what stands before a query: an edit."""
    codes = (*prompt, BETWEEN, *target, BEHIND)
    kinds = (*[_PROMPT] * len(prompt), _QUERY, *[_TARGET] * len(target), _QUERY)
    return Text(codes=codes, kinds=kinds)


@frozen(kw_only=True)
class Padded:
    """Texts side by side.

    Attributes:
        codes: (rows, tokens).
        kinds: (rows, tokens).
        mask: (rows, tokens) bool, False where there is a pad.
    """

    codes: Tensor
    kinds: Tensor
    mask: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Padded":
        """Return the same with every table changed alike."""
        return Padded(codes=change(self.codes), kinds=change(self.kinds), mask=change(self.mask))

    def then(self, more: "Padded") -> "Padded":
        """Return the same with more tokens behind every row."""
        return Padded(
            codes=torch.cat([self.codes, more.codes], 1),
            kinds=torch.cat([self.kinds, more.kinds], 1),
            mask=torch.cat([self.mask, more.mask], 1),
        )


def padded(texts: Sequence[Text], *, left: bool) -> Padded:
    """Return texts side by side, padded on one side."""
    width = max(len(text.codes) for text in texts)

    def table(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        pads = [[fill] * (width - len(row)) for row in rows]
        both = zip(rows, pads, strict=True)
        table = [[*pad, *row] if left else [*row, *pad] for row, pad in both]
        return torch.tensor(table, dtype=torch.long).reshape(len(rows), width)

    return Padded(
        codes=table([text.codes for text in texts], 0),
        kinds=table([text.kinds for text in texts], _QUERY),
        mask=table([[1] * len(text.codes) for text in texts], 0).bool(),
    )


class Counterfactual(nn.Module):
    """A decoder that reads an edit and a query."""

    def __init__(self, shape: Shape) -> None:
        """Make one with random weights."""
        super().__init__()
        self.shape = shape
        config = LlamaConfig(
            vocab_size=1,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.blocks,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=_CONTEXT,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.decoder = LlamaModel(config)
        self.decoder.set_input_embeddings(nn.Identity())  # it is given embeddings of the base
        self.marks = nn.Parameter(_SIZE * torch.randn(2, shape.width))
        self.kinds = nn.Parameter(torch.zeros(2, shape.width))
        self.shift = nn.Parameter(torch.ones(shape.width))

    def forward(
        self, base: Any, text: Padded, cache: Any = None, whole: Padded | None = None
    ) -> Any:
        """Return the hidden states (rows, tokens, width) that the head of the base reads.

        Args:
            base: lends its embeddings.
            text: to read.
            cache: what was read before, extended; None keeps nothing.
            whole: what was read before and ``text`` behind it; None where nothing was.
        """
        whole = whole or text
        mask, new = whole.mask, text.codes.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
        said = self.decoder(
            inputs_embeds=self._embedded(base, whole, new),
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return said.last_hidden_state

    def head(self, base: Any, hidden: Tensor) -> Tensor:
        """Return logits (…, vocabulary of the base) of hidden states, by the head of the base."""
        return head_of(base, hidden)

    def vocabulary(self, base: Any) -> int:
        """Return below which number the token ids are that it says."""
        return int(base.get_output_embeddings().weight.shape[0])

    def beside(self, weight: Tensor) -> "Counterfactual":
        """Return it on the device and in the dtype of a weight of the base."""
        return self.to(weight)

    def _embedded(self, base: Any, whole: Padded, new: int) -> Tensor:
        """Return what the blocks read (rows, new, width): each token, and moved aside the one before it.

        So one look finds what followed a token earlier on, which is how targets are copied.
        """
        places = torch.arange(whole.mask.shape[1], device=whole.mask.device)
        real = torch.where(whole.mask, places, -1).cummax(1).values  # the last that is no pad
        earlier = torch.cat([torch.full_like(real[:, :1], -1), real[:, :-1]], 1)[:, -new:]
        words = self._words(base, whole.codes[:, -new:], whole.kinds[:, -new:])
        where = earlier.clamp(min=0)
        before = self._words(base, whole.codes.gather(1, where), whole.kinds.gather(1, where))
        aside = before.roll(self.shape.width // 2, -1) * self.shift
        return words + torch.where(earlier[..., None].to(aside.device) >= 0, aside, 0)

    def _words(self, base: Any, codes: Tensor, kinds: Tensor) -> Tensor:
        embeddings = base.get_input_embeddings()
        device, dtype = self.marks.device, self.marks.dtype
        with torch.no_grad():
            ids = codes.clamp(min=0).to(next(embeddings.parameters()).device)
            words = embeddings(ids).to(device=device, dtype=dtype) * self.shape.scale
        codes, kinds = codes.to(device)[..., None], kinds.to(device)
        added = torch.cat([torch.zeros_like(self.kinds[:1]), self.kinds])[kinds]
        between, behind = self.marks
        words = torch.where(codes == BETWEEN, between, words)
        return torch.where(codes == BEHIND, behind, words) + added


def head_of(base: Any, hidden: Tensor) -> Tensor:
    """Return logits (…, vocabulary) of hidden states, by the head of the base."""
    head = base.get_output_embeddings()
    weight = head.weight
    logits: Tensor = head(hidden.to(device=weight.device, dtype=weight.dtype))
    return logits


def shape_for(base: Any, blocks: int, heads: int | None) -> Shape:
    """Return how large a counterfactual model of a base is.

    Args:
        base: whose width it has.
        blocks: how many.
        heads: of its attention; None takes one for every 64 of its width.
    """
    weight = base.get_input_embeddings().weight
    width = weight.shape[1]
    heads = heads or max(1, width // 64)
    while width % (2 * heads):
        heads -= 1
    rms = float(weight.detach().float().square().mean().sqrt())
    inner = -(-width * 8 // 3 // 16) * 16
    return Shape(width=width, inner=inner, blocks=blocks, heads=heads, scale=_SIZE / max(rms, 1e-6))


def new_counterfactual(shape: Shape, seed: int) -> Counterfactual:
    """Return a model with seeded random weights; no global random state moves."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Counterfactual(shape)
