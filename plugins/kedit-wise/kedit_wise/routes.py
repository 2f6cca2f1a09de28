"""Which shard a prompt goes to: the distance between main and side output at its tokens decides.

With d the distance of a prompt (largest, or mean, over its own tokens) and t the threshold of a shard,

    p = σ(log(d / t) / temperature)

is the probability that it is in the shard's scope; from ½ on, that is from d = t on, it is.
"""

from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn.functional import normalize, softplus

from kedit_memory.kept import OUTSIDE
from kedit_wise.kernels import side_distance
from kedit_wise.shards import SideMatrix

Over = Literal["max", "mean"]
"""How the distances of a prompt's tokens make one."""

_SHARPEST, _BLUNTEST, _CHOICES = -1.5, 0.5, 41  # log10 of temperatures


@frozen(kw_only=True)
class Found:
    """Where prompts go.

    Attributes:
        shard: (prompts,) int64, ``OUTSIDE`` for none.
        probability: (prompts,) of being in the scope of the shard that comes nearest.
        nearest: (prompts,) int64, that shard.
        inputs: (prompts, in_features) of the token, or the mean over tokens, that decided.
    """

    shard: Tensor
    probability: Tensor
    nearest: Tensor
    inputs: Tensor = field(repr=False)


def distances(inputs: Tensor, updates: Tensor) -> Tensor:
    """Return distances (shards, prompts, tokens) of inputs (prompts, tokens, in_features)."""
    prompts, tokens, width = inputs.shape
    found: Tensor = side_distance(inputs.reshape(-1, width), updates)
    return found.reshape(len(updates), prompts, tokens)


def pooled(by_token: Tensor, real: Tensor, over: Over) -> Tensor:
    """Return the distance of each prompt, (…, prompts).

    Args:
        by_token: (…, prompts, tokens).
        real: (prompts, tokens) bool, which tokens count.
        over: how those of its tokens make one.
    """
    if over == "max":
        return torch.where(real, by_token, 0.0).amax(-1)
    return torch.where(real, by_token, 0.0).sum(-1) / real.sum(-1).clamp(min=1)


def standing_for(inputs: Tensor, by_token: Tensor, real: Tensor, over: Over) -> Tensor:
    """Return the input that stands for each prompt, (prompts, in_features).

    Args:
        inputs: (prompts, tokens, in_features).
        by_token: (prompts, tokens) distances of the shard in question.
        real: (prompts, tokens) bool.
        over: the largest distance's token, or the mean of all.
    """
    if over == "mean":
        return torch.where(real[..., None], inputs, 0.0).sum(1) / real.sum(1, keepdim=True)
    place = torch.where(real, by_token, -1.0).argmax(1)  # (prompts,)
    return inputs[torch.arange(len(inputs), device=inputs.device), place]


class Router:
    """Finds the shard of prompts.

    Attributes:
        updates: (shards, out_features, in_features) on the device of the projection.
    """

    def __init__(self, memory: SideMatrix, device: torch.device, dtype: torch.dtype) -> None:
        """Keep what is needed of ``memory`` on a device, its updates in ``dtype``."""
        self.updates = memory.updates().to(device, dtype)
        self._over: Over = memory.settings["distance"]
        self._by_ratio = memory.settings["choose"] == "ratio"
        self._thresholds = memory.thresholds.to(device)[:, None]  # (shards, 1)
        self._temperatures = memory.temperatures.to(device)

    def find(self, inputs: Tensor, real: Tensor) -> Found:
        """Return where prompts go.

        Args:
            inputs: (prompts, tokens, in_features) of the projection.
            real: (prompts, tokens) bool, the prompts' own tokens.
        """
        by_token = distances(inputs, self.updates)  # (shards, prompts, tokens)
        reached = pooled(by_token, real, self._over).double()  # (shards, prompts)
        ratio = reached / self._thresholds
        inside = ratio >= 1.0
        # Among those in scope the best one; the nearest to its threshold where none is.
        rank = ratio if self._by_ratio else torch.where(inside, reached, ratio - 1.0)
        nearest = rank.argmax(0)  # (prompts,)
        prompts = torch.arange(len(nearest), device=nearest.device)
        over = ratio[nearest, prompts].log() / self._temperatures[nearest]
        return Found(
            shard=torch.where(inside[nearest, prompts], nearest, OUTSIDE),
            probability=torch.sigmoid(over).float(),
            nearest=nearest,
            inputs=standing_for(inputs, by_token[nearest, prompts], real, self._over),
        )


def named(memory: SideMatrix, found: Found) -> tuple[str | None, ...]:
    """Return per prompt the id of the edit of its shard whose key is nearest to what decided, or None."""
    names: list[str | None] = []
    keys = normalize(memory.keys.double(), dim=-1)  # (edits, columns, in_features)
    asked = normalize(found.inputs.double().cpu(), dim=-1)  # (prompts, in_features)
    for query, shard in zip(asked, found.shard.tolist(), strict=True):
        places = memory.inside(shard)
        if shard == OUTSIDE or not len(places):
            names.append(None)
            continue
        best = (keys[places] @ query).amax(1).argmax()
        names.append(memory.requests[int(places[best])].id)
    return tuple(names)


def calibrated(inside: Tensor, outside: Tensor, rejects: float) -> tuple[float, float]:
    """Return threshold and temperature between two kinds of distances.

    The threshold keeps the wanted share of irrelevant texts out. Where all but a few of the shard's own
    prompts lie above that, it is half way between, on a logarithmic scale.

    Args:
        inside: (edits,) distances of the shard's own prompts.
        outside: (texts,) distances of irrelevant texts.
        rejects: share of them to keep out.
    """
    high = float(outside.double().quantile(rejects)) if len(outside) else 0.0
    low = float(inside.double().quantile(1 - rejects))
    threshold = (low * high) ** 0.5 if low > high > 0 else max(high, low / 2)
    return threshold, _temperature(inside, outside, threshold)


def _temperature(inside: Tensor, outside: Tensor, threshold: float) -> float:
    """Return the temperature under which what is inside and what is not are likeliest, both alike."""
    choices = torch.logspace(_SHARPEST, _BLUNTEST, _CHOICES, dtype=torch.float64)
    over, under = (
        (one.double().clamp(min=1e-12) / threshold).log() for one in (inside, outside)
    )
    losses = [
        float(softplus(-over / one).mean()) + float(softplus(under / one).nan_to_num(0.0).mean())
        for one in choices.tolist()
    ]
    return float(choices[int(torch.tensor(losses).nan_to_num(torch.inf).argmin())])
