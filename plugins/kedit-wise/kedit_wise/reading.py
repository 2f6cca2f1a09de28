"""What a projection reads at the tokens of prompts."""

from collections.abc import Sequence

import torch
from torch import nn

from kedit_core.pieces import Projection
from kedit_core.reading import reach_past_pads
from kedit_core.tokens import Ids
from kedit_locate.capture import inputs_of
from kedit_locate.rows import padded
from kedit_locate.saying import exact
from kedit_wise.routes import Prompts

_ROWS = 64  # read side by side


@torch.no_grad()
def read_by(model: nn.Module, down: Projection, prompts: Sequence[Ids]) -> Prompts:
    """Return what a projection reads of prompts, float32 or more, on the CPU; the forward ends there.

    Args:
        model: in ``eval`` mode.
        down: the projection.
        prompts: token ids of each.
    """
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    width = max(map(len, prompts))
    kind = exact(dtype)
    inputs = torch.zeros(len(prompts), width, down.in_features, dtype=kind)
    real = torch.zeros(len(prompts), width, dtype=torch.bool)
    # Of like length together: where pads would change what a model reads there are none.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    reach = reach_past_pads(model)
    while order:
        longest = len(prompts[order[0]])
        some = [place for place in order[:_ROWS] if len(prompts[place]) == longest]
        if len(prompts[order[:_ROWS][-1]]) <= reach:
            some = order[:_ROWS]
        order = order[len(some) :]
        ids, mask = padded([prompts[place] for place in some], device)
        seen = inputs_of(model, [down.path], ids, mask)[down.path]
        inputs[some, : ids.shape[1]] = seen.to("cpu", kind)
        real[some, : ids.shape[1]] = mask.bool().cpu()
    return Prompts(inputs=inputs, real=real)
