"""Several processes that train one counterfactual model: each takes its part of every step's rows.

Gradients are summed over the processes, so that a step of many is the step of one, up to rounding. They meet
where ``torchrun`` or ``accelerate launch`` told them to, and only when asked: nothing here is global otherwise.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from attrs import frozen
from torch import Tensor, distributed

from kedit_core.errors import KeditError

Item = TypeVar("Item")

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=1)  # the first one trains the scope and judges while the others wait


@frozen(kw_only=True)
class Team:
    """Which of how many processes this is.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Tell whether this process is the one that judges and writes."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of what is in order: every so manieth."""
        return items[self.rank :: self.size]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor its sum over all processes, the same bits in each."""
        if self.size == 1:
            return
        found = list(tensors)
        flat = torch.cat([one.detach().reshape(-1).cpu() for one in found])
        distributed.all_reduce(flat)
        sums = torch.split(flat, [one.numel() for one in found])
        for one, total in zip(found, sums, strict=True):
            one.copy_(total.reshape(one.shape))

    def told(self, value: float) -> float:
        """Return the value that the first process has."""
        if self.size == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(said, src=0)
        return float(said)


ALONE = Team()


@contextmanager
def team(*, asked: bool) -> Iterator[Team]:
    """Meet the other processes, and part from them at the end.

    Args:
        asked: else this process is alone.

    Raises:
        KeditError: nobody told this process where to meet the others.
    """
    if not asked:
        yield ALONE
        return
    missing = [name for name in _TOLD if name not in os.environ]
    if missing:
        raise KeditError(
            f"{' and '.join(missing)} are not set; start several processes with "
            "torchrun --nproc-per-node N --no-python kedit serac train PLAN.toml --distributed"
        )
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Team(rank=distributed.get_rank(), size=distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
