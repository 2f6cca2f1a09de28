"""Thresholds of shards, between what their own prompts reach and what texts do that no edit is about.

A text goes to the side memory where it stirs any one of the shards. So that of all n of them no more than a
share 1 - r of such texts does, each one keeps a share r^(1/n) out; every threshold is set anew whenever a
shard is written, begun or merged, and is a function of the memory alone, whatever way led to it.
"""

import math

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
    places = memory.inside(number)
    alone = evolve(
        memory,
        shards=(memory.shards[number],),
        keys=memory.keys[places],
        shard=torch.zeros(len(places), dtype=torch.long),
    )
    router = Router(alone, device, prompts.inputs.dtype)
    every = torch.split(torch.arange(len(prompts.inputs)), _PROMPTS)
    return torch.cat([router.reached(prompts.some(one, device))[0].cpu() for one in every])


def with_thresholds(memory: SideMatrix, routes: Routes) -> SideMatrix:
    """Return a memory with the thresholds of all its shards set anew.

    Args:
        memory: every shard knows what irrelevant texts reach of it.
        routes: how thresholds are set.
    """
    rejects = routes.rejects ** (1 / max(len(memory.shards), 1))

    def made(number: int, shard: Shard) -> Shard:
        own = memory.reached[memory.inside(number)]
        outside = shard.outside[shard.outside != NAMED]
        threshold = calibrated(own, outside, rejects, routes.keeps)
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
