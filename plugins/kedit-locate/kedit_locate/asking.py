"""How likely a model finds the targets of edits, as it is."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kedit_core.progress import Progress
from kedit_locate.parts import Part, read_parts
from kedit_locate.rows import EditRows
from kedit_locate.sizes import MEMORY, sizes_for
from kedit_locate.suffix import run


@torch.no_grad()
def probabilities(
    model: nn.Module, edits: Sequence[EditRows], progress: Progress
) -> tuple[float, ...]:
    """Return the probability of each target, the geometric mean over its tokens and its contexts.

    Args:
        model: in ``eval`` mode.
        edits: rows of each.
        progress: told how many edits were asked for.
    """
    size = sizes_for(model, edits, 0, MEMORY)
    found: list[float] = []
    with progress.task("asking for the targets", len(edits), "edits") as advance:
        for start in range(0, len(edits), size.edits):
            some = edits[start : start + size.edits]
            nll = torch.stack(
                [_nll(model, part, len(some)) for part in read_parts(model, some, size.rows)]
            )
            found += nll.sum(0).neg().exp().tolist()
            advance(len(some))
    return tuple(found)


def _nll(model: nn.Module, part: Part, edits: int) -> Tensor:
    """Return what the rows of a part add to the mean NLL a token of each edit, (requests,)."""
    logits = run(model, part.suffix, part.row, part.place)  # (targets, vocabulary)
    own = cross_entropy(logits, part.target, reduction="none") * part.share.to(logits.dtype)
    return own.new_zeros(edits).index_put((part.edit[part.row],), own, accumulate=True)
