"""The lower layers of a model, which a shift further up cannot change: they run once.

What the last of them wrote is kept; afterwards each of them returns it instead of computing.
The cache of keys and values of a skipped layer is asked for its length only, so it can be hollow. Families
whose upper layers read something else of the lower ones (a cache that layers share, for example) are
found out by comparing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen
from torch import Tensor, nn

from kedit_core.outputs import first_tensor


@frozen(kw_only=True)
class Lower:
    """The blocks that need not run again, and what the last of them wrote.

    Attributes:
        blocks: their paths, first to last.
        hidden: (rows, tokens, width).
        others: how many further things a block returns beside the hidden states; None where it
            returns a tensor.
    """

    blocks: tuple[str, ...]
    hidden: Tensor
    others: int | None


def blocks_below(model: nn.Module, sites: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of the blocks that a shift at any of the sites leaves as they are.

    Those are the blocks below the lowest site; and that site's own where the site is a whole block, for the
    shift is then added to what it returns.

    Args:
        model: whose blocks they are.
        sites: paths of modules; none of its blocks is below a site outside of them.
    """
    return min((_below(model, site) for site in sites), key=len, default=())


@contextmanager
def remembering(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[Lower]]:
    """Keep what the last of the blocks returns, before any hook; it is there when the forward ended.

    Args:
        model: to run once inside the ``with``.
        blocks: as ``blocks_below`` returns them; where there is none nothing is kept.
    """
    kept: list[Lower] = []
    if not blocks:
        yield kept
        return
    last = model.get_submodule(blocks[-1])
    forward = last.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, Tensor | tuple):
            others = None if isinstance(output, Tensor) else len(output) - 1
            hidden = first_tensor(output).detach()
            kept[:] = [Lower(blocks=tuple(blocks), hidden=hidden, others=others)]
        return output

    with replaced_forwards({last: watched}):
        yield kept


@contextmanager
def skipped(model: nn.Module, lower: Lower | None) -> Iterator[None]:
    """Let the lower blocks pass on what was kept instead of computing; their hooks run still.

    Args:
        model: to run inside the ``with``, on the rows and tokens that were kept.
        lower: what was kept; None skips nothing.
    """
    if lower is None:
        yield
        return
    others = lower.others
    output = lower.hidden if others is None else (lower.hidden, *(None for _ in range(others)))

    def pass_on(*_: Any, **__: Any) -> Any:
        return output

    with replaced_forwards({model.get_submodule(path): pass_on for path in lower.blocks}):
        yield


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Put functions in the place of what modules compute; hooks see no difference.

    Args:
        forwards: what each module computes inside the ``with``.
    """
    before = [(module, vars(module).get("forward")) for module in forwards]
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before:
            vars(module).pop("forward", None)
            if own is not None:  # others replace forwards too
                module.forward = own


def blocks_around(model: nn.Module, site: str) -> tuple[str, ...]:
    """Return the paths of all blocks where a site is in one of them: the outermost list of modules.

    Args:
        model: whose blocks they are.
        site: path of a module.
    """
    names = site.split(".")
    for depth in range(1, len(names)):
        path = ".".join(names[:depth])
        modules = model.get_submodule(path)
        if isinstance(modules, nn.ModuleList):
            return tuple(f"{path}.{index}" for index in range(len(modules)))
    return ()


def _below(model: nn.Module, site: str) -> tuple[str, ...]:
    """Return the blocks before a site, its own included where the site is one."""
    blocks = blocks_around(model, site)
    before = [n for n, block in enumerate(blocks) if f"{site}.".startswith(f"{block}.")]
    return blocks[: before[0] + (site in blocks)] if before else ()
