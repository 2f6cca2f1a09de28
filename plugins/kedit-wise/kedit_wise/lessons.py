"""What a shard is trained on: every prompt of its edits behind every prefix, and texts that no edit is about.

Nothing below the edited projection changes, so what it reads is computed once; a step runs from its block on
and asks for the logits of target tokens only (``kedit_locate.suffix``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from kedit_core import EditRequest, encode
from kedit_core.errors import RequestError
from kedit_core.pieces import Projection
from kedit_core.reading import reach_past_pads
from kedit_core.tokens import check_context, encode_target
from kedit_locate.capture import inputs_of
from kedit_locate.lower import blocks_below
from kedit_locate.picking import last_mlp
from kedit_locate.rows import padded
from kedit_locate.saying import exact
from kedit_locate.suffix import Suffix, enter, read_suffix

_TOKENS = 4096  # of a part, pads included


@frozen(kw_only=True)
class Line:
    """One text of an edit: prefix, prompt and target.

    Attributes:
        ids: all but the target's last token.
        prompt: how many of them are prefix and prompt.
        target: ids to say; the first is predicted at ``prompt - 1``.
    """

    ids: tuple[int, ...]
    prompt: int
    target: tuple[int, ...]


def lines_of(
    tokenizer: Any, request: EditRequest, prefixes: Sequence[str], *, chat: bool
) -> list[Line]:
    """Return the texts of one edit, the bare prompt's first.

    Args:
        tokenizer: of the model.
        request: with or without a subject.
        prefixes: texts to put before the prompt, the bare one first.
        chat: render each text through the chat template.
    """
    found = []
    for read in encode(tokenizer, [prefix + request.prompt for prefix in prefixes], chat):
        target = encode_target(tokenizer, read, request.joiner + request.target_new)
        if not target:
            raise RequestError(f"target {request.target_new!r} tokenises to nothing")
        found.append(Line(ids=read.ids + target[:-1], prompt=len(read.ids), target=target))
    return found


@frozen(kw_only=True)
class Part:
    """Lines that share a forward.

    Attributes:
        suffix: them, from the edited block on.
        lines: which of all lines they are.
        row: (targets,) line of each target token, counted within the part.
        place: (targets,) where it is predicted.
        target: (targets,) its id.
        share: (targets,) weight of its NLL in its edit's loss.
    """

    suffix: Suffix = field(repr=False)
    lines: slice
    row: Tensor
    place: Tensor
    target: Tensor
    share: Tensor


@frozen(kw_only=True)
class Lesson:
    """All lines of some edits, as many of each.

    Attributes:
        edits: how many.
        each: lines of one edit; they stand together, the bare prompt's first.
        inputs: (lines, tokens, in_features) of the projection.
        prompts: (lines, tokens) bool, which tokens are prefix and prompt.
        parts: the lines in order.
        refusal: why the layers below ran at every step; empty where they ran once.
    """

    edits: int
    each: int
    inputs: Tensor = field(repr=False)
    prompts: Tensor = field(repr=False)
    parts: tuple[Part, ...]
    refusal: str = ""


@torch.no_grad()
def lesson_of(
    model: nn.Module, edits: Sequence[Sequence[Line]], down: Projection, site: str
) -> Lesson:
    """Read the lines of edits once, up to the edited block.

    Args:
        model: in ``eval`` mode, without the shard.
        edits: lines of each, as many of each.
        down: the projection.
        site: path of the module whose output moves: the block, or the projection itself.
    """
    lines = [line for edit in edits for line in edit]
    width = max(len(line.ids) for line in lines)
    check_context(model, width)
    device = next(model.parameters()).device
    blocks, narrow = blocks_below(model, [site]), last_mlp(model, [site])
    kind = exact(next(model.parameters()).dtype)
    inputs = torch.zeros(len(lines), width, down.in_features, device=device, dtype=kind)
    parts: list[Part] = []
    refusal = ""
    for some in _cut(model, lines):
        part = _part(model, lines[some], some, len(edits[0]))
        picked = (part.row, part.place)
        entered = enter(model, part.suffix, blocks, *picked, narrow=narrow, verify=not parts)
        if entered.refusal:
            refusal, blocks, narrow = entered.refusal, (), None
        seen = inputs_of(model, [down.path], *padded([one.ids for one in lines[some]], device))
        inputs[some, : part.suffix.ids.shape[1]] = seen[down.path].to(kind)
        parts.append(evolve(part, suffix=entered.suffix))
    places = torch.arange(width, device=device)
    ends = torch.tensor([line.prompt for line in lines], device=device)
    return Lesson(
        edits=len(edits),
        each=len(edits[0]),
        inputs=inputs,
        prompts=places < ends[:, None],
        parts=tuple(parts),
        refusal=refusal,
    )


def _cut(model: nn.Module, lines: Sequence[Line]) -> list[slice]:
    """Cut lines into parts that fit; lines of one length each where pads would change what is said."""
    reach = reach_past_pads(model)
    found: list[slice] = []
    start, longest = 0, 0
    for place, line in enumerate(lines):
        wider = max(longest, len(line.ids))
        mixed = place > start and len(line.ids) != longest and wider > reach
        if place > start and (mixed or wider * (place - start + 1) > _TOKENS):
            found.append(slice(start, place))
            start, wider = place, len(line.ids)
        longest = wider
    return [*found, slice(start, len(lines))]


def _part(model: nn.Module, lines: Sequence[Line], some: slice, each: int) -> Part:
    suffix = read_suffix(model, [line.ids for line in lines], [0 for _ in lines])
    device = suffix.ids.device
    row: list[int] = []
    place: list[int] = []
    target: list[int] = []
    share: list[float] = []
    for number, line in enumerate(lines):
        count = len(line.target)
        row += [number] * count
        place += range(line.prompt - 1, line.prompt - 1 + count)
        target += line.target
        share += [1 / (count * each)] * count
    return Part(
        suffix=suffix,
        lines=some,
        row=torch.tensor(row, device=device),
        place=torch.tensor(place, device=device),
        target=torch.tensor(target, device=device),
        share=torch.tensor(share, device=device, dtype=torch.float64),
    )
