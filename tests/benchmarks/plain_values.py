"""The search for a value as one would first write it: what the engine is measured against.

One edit at a time; every step is a whole forward of all rows, all layers and all tokens, with one head, in
the model's dtype. Nothing is printed and nothing computed twice, so that it is no slower than it must be.
"""

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_locate.capture import replaced_output
from kedit_locate.config import Search
from kedit_locate.rows import EditRows, padded


@frozen(kw_only=True)
class Plain:
    """What a plain search found: h₀ and δ (width,), and the mean NLL of a token of the target."""

    base: Tensor
    shift: Tensor
    nll: float


def plain_search(model: nn.Module, edit: EditRows, site: str, search: Search) -> Plain:
    """Search for a value by whole forwards of all rows, one after the other step."""
    device = next(model.parameters()).device
    rows = [*edit.rewrites, edit.anchor]
    ids, mask = padded([row.ids for row in rows], device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    places = torch.tensor([row.lookup for row in rows], device=device)
    every = torch.arange(len(rows), device=device)
    count = len(edit.rewrites[0].target)
    targets = torch.tensor(
        [row.target for row in edit.rewrites], device=device
    )  # (rewrites, tokens)
    starts = torch.tensor([len(row.ids) - count for row in edit.rewrites], device=device)
    said_at = starts[:, None] + torch.arange(count, device=device)  # (rewrites, tokens)
    base = first = torch.empty(0)

    def run(shift: Tensor) -> Tensor:
        nonlocal base

        def change(hidden: Tensor) -> Tensor:
            nonlocal base
            base = hidden[0, places[0]].detach().clone() if not len(base) else base
            hidden = hidden.clone()
            hidden[every, places] += shift
            return hidden

        with replaced_output(model, site, change):
            output = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            )
        return output.logits.log_softmax(-1)

    shift = torch.zeros(model.config.hidden_size, device=device, requires_grad=True)
    adam = torch.optim.Adam([shift], lr=search.lr)
    for step in range(search.steps):
        last = step == search.steps - 1
        with torch.set_grad_enabled(not last):
            said = run(shift)
            nll = -said[every[:-1, None], said_at, targets].mean()
            now = said[-1, places[-1]]
        first = now.detach() if not len(first) else first
        decay = search.decay * shift.norm() / base.norm() ** 2
        loss = nll + search.kl * (now.exp() * (now - first)).sum() + decay
        if last or loss < search.stop:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            shift *= (search.clamp * base.norm() / shift.norm()).clamp(max=1)
    return Plain(base=base, shift=shift.detach(), nll=float(nll.detach()))
