"""Thresholds of shards, between what their own prompts reach and what texts do that no edit is about.

A text goes to the side memory where it stirs any one of the shards. So that of all n of them no more than a
share 1 - r of such texts does, each one keeps a share r^(1/n) out; every threshold is set anew whenever a
shard is written, begun or merged, and is a function of the memory alone, whatever way led to it.

One key that any text stirs, such as the full stop that ends "Floyd Mayweather Jr.", would pull the threshold
of its whole shard up to where own prompts lie, and still let texts in. Such keys are *loud*: no prompt is
routed by them, as long as the shard keeps enough of its own prompts.
"""

import math
from collections.abc import Iterator

import torch
from attrs import evolve
from torch import Tensor
from torch.nn.functional import softplus

from kedit_wise.config import Routes
from kedit_wise.routes import Prompts, Router
from kedit_wise.shards import Shard, SideMatrix

NAMED = -1.0
"""What stands for a text that names a subject of the shard: it says nothing of what is irrelevant."""

_SHARPEST, _BLUNTEST, _CHOICES = -1.5, 0.5, 41  # log10 of temperatures
_LATER = 0.95  # share of what a prompt reached when it was made that it reaches in other words
_TINY = 1e-9
_PROMPTS = 64  # measured side by side


def reached_of(memory: SideMatrix, number: int, prompts: Prompts, device: torch.device) -> Tensor:
    """Return what prompts reach of one shard, (prompts,) on the CPU.

    Args:
        memory: that has the shard.
        number: which one it is.
        prompts: to measure.
        device: to compute on.
    """
    router = Router(_alone(memory, number), device, prompts.inputs.dtype)
    return torch.cat([router.reached(some)[0].cpu() for some in _pieces(prompts, device)])


def loud_of(
    memory: SideMatrix, number: int, texts: Prompts, routes: Routes, device: torch.device
) -> Tensor:
    """Return which edits of one shard are loud, (edits of the shard,) bool.

    Their key is matched as well as by an own prompt in other words by more irrelevant texts than all shards
    together are to let in. As many stay as ``keeps`` asks for; those that most texts match go first.

    Args:
        memory: that has the shard.
        number: which one it is.
        texts: irrelevant ones that name no subject of the shard.
        routes: how thresholds are set.
        device: to compute on.
    """
    alone = _alone(memory, number)
    found = torch.zeros_like(alone.loud)
    by_keys = memory.scoped is None and memory.settings["measure"] == "match"
    if not by_keys or not len(texts.inputs):
        return found
    router = Router(evolve(alone, loud=found), device, texts.inputs.dtype)
    pieces = [router.matched(some).cpu() for some in _pieces(texts, device)]  # (edits, texts) each
    share = (torch.cat(pieces, 1) >= _LATER).double().mean(1)  # (edits,)
    least = max(math.ceil(routes.keeps * len(share) - _TINY), 1)
    loudest = share.argsort(descending=True, stable=True)[: len(share) - least]
    found[loudest] = share[loudest] > 1 - routes.rejects
    return found


def _alone(memory: SideMatrix, number: int) -> SideMatrix:
    """Return a memory of one shard."""
    places = memory.inside(number)
    return evolve(
        memory,
        shards=(memory.shards[number],),
        keys=memory.keys[places],
        shard=torch.zeros(len(places), dtype=torch.long),
        loud=memory.loud[places],
    )


def _pieces(prompts: Prompts, device: torch.device) -> Iterator[Prompts]:
    """Yield prompts on a device, some at a time."""
    for some in torch.split(torch.arange(len(prompts.inputs)), _PROMPTS):
        yield prompts.some(some, device)


def with_thresholds(memory: SideMatrix, routes: Routes) -> SideMatrix:
    """Return a memory with the thresholds of all its shards set anew.

    Args:
        memory: every shard knows what irrelevant texts reach of it.
        routes: how thresholds are set.
    """
    rejects = routes.rejects ** (1 / max(len(memory.shards), 1))

    def made(number: int, shard: Shard) -> Shard:
        places = memory.inside(number)
        heard = places[~memory.loud[places]]
        own = memory.reached[heard if len(heard) else places]
        outside = shard.outside[shard.outside != NAMED]
        # Loud edits are among those that a shard may lose.
        keeps = min(routes.keeps * len(places) / len(own), 1.0)
        threshold = calibrated(own, outside, rejects, keeps)
        if routes.threshold == "activation":
            threshold = routes.ratio * float(own.min())
        temperature = temperature_of(own, outside, threshold)
        return evolve(shard, threshold=threshold, temperature=temperature)

    return evolve(memory, shards=[made(*one) for one in enumerate(memory.shards)])


def calibrated(inside: Tensor, outside: Tensor, rejects: float, keeps: float) -> float:
    """Return a threshold between two kinds of prompts.

    Where they lie apart it is half way, on a logarithmic scale, between what all but few irrelevant texts
    stay below and what the shard's own prompts reach in other words too. Where they overlap it keeps the
    texts out, as long as enough of the own prompts come in.

    Args:
        inside: (edits,) what the shard's own prompts reach.
        outside: (texts,) what irrelevant texts reach.
        rejects: share of the irrelevant texts to keep out.
        keeps: share of the own prompts that come in whatever texts do.
    """
    own = inside.double()
    low = max(_LATER * float(own.quantile(0.01)), _TINY)
    high = float(outside.double().quantile(rejects)) if len(outside) else 0.0
    if high > low:
        return max(low, min(high, float(own.quantile(1 - keeps))))
    return math.sqrt(low * max(high, low / 4))


def temperature_of(inside: Tensor, outside: Tensor, threshold: float) -> float:
    """Return the temperature under which what is inside and what is not are likeliest, both alike.

    Args:
        inside: (edits,) what the shard's own prompts reach.
        outside: (texts,) what irrelevant texts reach.
        threshold: between them.
    """
    choices = torch.logspace(_SHARPEST, _BLUNTEST, _CHOICES, dtype=torch.float64)
    over, under = ((one.double().clamp(min=_TINY) / threshold).log() for one in (inside, outside))
    losses = [
        float(softplus(-over / one).mean()) + float(softplus(under / one).mean().nan_to_num(0.0))
        for one in choices.tolist()
    ]
    return float(choices[int(torch.tensor(losses).argmin())])
