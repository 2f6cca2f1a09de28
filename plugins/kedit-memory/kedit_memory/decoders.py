"""Small decoders beside a base: trained blocks on the base's own embeddings, which stay as they are.

What such a decoder reads is token ids of the base, with learned marks in between, and of each token its kind,
for which a learned vector is added. What it gives are hidden states of the base's width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

PLAIN = 0
"""The kind for which nothing is added."""

_CONTEXT = 8192
_SIZE = 0.1  # of the components of an embedding


@frozen(kw_only=True)
class Shape:
    """How large a decoder is.

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
    """What a decoder reads of one row.

    Attributes:
        codes: token ids, and marks: -1 is the first, -2 the second, and so on.
        kinds: of each code, ``PLAIN`` or from 1 on.
    """

    codes: tuple[int, ...]
    kinds: tuple[int, ...]

    def then(self, ids: Sequence[int]) -> "Text":
        """Return the same with plain token ids behind it."""
        return Text(codes=(*self.codes, *ids), kinds=(*self.kinds, *[PLAIN] * len(ids)))


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
        kinds=table([text.kinds for text in texts], PLAIN),
        mask=table([[1] * len(text.codes) for text in texts], 0).bool(),
    )


class Decoder(nn.Module):
    """Blocks on the embeddings of a base."""

    def __init__(self, shape: Shape, *, marks: int, kinds: int) -> None:
        """Make one with random weights, for so many marks and so many kinds beside ``PLAIN``."""
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
        self.marks = nn.Parameter(_SIZE * torch.randn(marks, shape.width))
        self.kinds = nn.Parameter(torch.zeros(kinds, shape.width))
        self.shift = nn.Parameter(torch.ones(shape.width))

    def forward(
        self, base: Any, text: Padded, cache: Any = None, whole: Padded | None = None
    ) -> Any:
        """Return hidden states (rows, tokens, width).

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

    def _embedded(self, base: Any, whole: Padded, new: int) -> Tensor:
        """Return what the blocks read (rows, new, width): each token, and moved aside the one before it.

        So one look finds what followed a token earlier on, which is how targets are copied.
        """
        places = torch.arange(whole.mask.shape[1], device=whole.mask.device)
        real = torch.where(whole.mask, places, -1).cummax(1).values  # the last that is no pad
        earlier = torch.cat([torch.full_like(real[:, :1], -1), real[:, :-1]], 1)[:, -new:]
        words = self.words(base, whole.codes[:, -new:], whole.kinds[:, -new:])
        where = earlier.clamp(min=0)
        before = self.words(base, whole.codes.gather(1, where), whole.kinds.gather(1, where))
        aside = before.roll(self.shape.width // 2, -1) * self.shift
        return words + torch.where(earlier[..., None].to(aside.device) >= 0, aside, 0)

    def words(self, base: Any, codes: Tensor, kinds: Tensor) -> Tensor:
        """Return what is read of single tokens, (rows, tokens, width).

        Args:
            base: lends its embeddings.
            codes: (rows, tokens), as in :class:`Padded`.
            kinds: (rows, tokens) of the same.
        """
        embeddings = base.get_input_embeddings()
        device, dtype = self.marks.device, self.marks.dtype
        with torch.no_grad():
            ids = codes.clamp(min=0).to(next(embeddings.parameters()).device)
            words = embeddings(ids).to(device=device, dtype=dtype) * self.shape.scale
        codes, kinds = codes.to(device)[..., None], kinds.to(device)
        added = torch.cat([torch.zeros_like(self.kinds[:1]), self.kinds])[kinds]
        for place, mark in enumerate(self.marks):
            words = torch.where(codes == -1 - place, mark, words)
        read: Tensor = words + added
        return read


def shape_for(base: Any, blocks: int, heads: int | None) -> Shape:
    """Return how large a decoder beside a base is.

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
