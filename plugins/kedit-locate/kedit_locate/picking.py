"""Letting the top of a model compute for those tokens only whose logits are needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.outputs import first_tensor, replace_first
from kedit_locate.lower import blocks_around, replaced_forwards


@contextmanager
def head_reads(
    model: nn.Module, shape: Sequence[int], row: Tensor, place: Tensor, *, bare: bool = False
) -> Iterator[list[int]]:
    """Let the head read some tokens only, (1, picked, width); the list tells afterwards whether it did.

    Args:
        model: to run once inside the ``with``.
        shape: rows and tokens that it runs on.
        row: (picked,) rows of the tokens.
        place: (picked,) their places.
        bare: let the head pass on what it reads instead.
    """
    ran: list[int] = []

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden, *others = args  # (rows, tokens, width)
        if hidden.shape[:-1] != torch.Size(shape):
            return None
        ran.append(len(row))
        return (hidden[row, place][None], *others)

    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(pick) if isinstance(head, nn.Module) else None
    try:
        with replaced_forwards({head: lambda hidden: hidden} if bare else {}):
            yield ran
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def head_writes(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what the head writes; what a model then makes of it is not always nothing.

    Args:
        model: to run once inside the ``with``.
    """
    written: list[Tensor] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        written.append(output)

    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_hook(look) if isinstance(head, nn.Module) else None
    try:
        yield written
    finally:
        if handle is not None:
            handle.remove()


def last_mlp(model: nn.Module, sites: Sequence[str]) -> str | None:
    """Return the path of the MLP after which a model is done with most tokens; None where there is none.

    Nothing reads what the last block's MLP writes but the head. Where a site is in that block the MLP
    must see all tokens, for something may look at them.

    Args:
        model: whose MLP it is.
        sites: paths of modules.
    """
    blocks = blocks_around(model, sites[0])
    if not blocks or any(f"{site}.".startswith(f"{blocks[-1]}.") for site in sites):
        return None
    children = model.get_submodule(blocks[-1]).named_children()
    found = [name for name, child in children if "MLP" in type(child).__name__]
    return f"{blocks[-1]}.{found[0]}" if len(found) == 1 else None


@contextmanager
def mlp_reads(
    model: nn.Module, path: str | None, shape: Sequence[int], row: Tensor, place: Tensor
) -> Iterator[None]:
    """Let an MLP compute some tokens only and write nothing at the others.

    Args:
        model: to run inside the ``with``.
        path: of the MLP; None leaves all as it is.
        shape: rows and tokens that the model runs on.
        row: (picked,) rows of the tokens.
        place: (picked,) their places.
    """
    if path is None:
        yield
        return
    heard = torch.zeros(*shape, dtype=torch.bool, device=row.device)
    heard[row, place] = True
    index = heard.flatten().nonzero()[:, 0]  # each token once, or its gradient would count twice

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_some(one, shape, index) for one in args)

    def spread(_: nn.Module, __: Any, output: Any) -> Any:
        some = first_tensor(output)[0]  # (picked, width)
        every = some.new_zeros(heard.numel(), some.shape[-1]).index_put((index,), some)
        return replace_first(output, every.reshape(*shape, -1))

    mlp = model.get_submodule(path)
    handles = [mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(spread, prepend=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _some(one: Any, shape: Sequence[int], index: Tensor) -> Any:
    """Return some tokens of hidden states (rows, tokens, width), (1, picked, width)."""
    if not isinstance(one, Tensor) or one.shape[:-1] != torch.Size(shape):
        return one
    return one.flatten(0, 1)[index][None]
