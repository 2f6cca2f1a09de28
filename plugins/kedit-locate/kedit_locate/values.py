"""Values: what the edited projection should write for the model to say the new target.

For each edit a shift δ is added to what a site (an MLP's down-projection, or a whole block) writes at
the subject's last token, and found by Adam on

    mean_i NLL(target | row i) + κ KL(P_δ ‖ P_0 at the anchor) + Σ_sites w ‖δ‖ / ‖h₀‖²,    ‖δ‖ ≤ c ‖h₀‖

where h₀ is what the site writes on the bare prompt (Meng et al., 2022, arXiv:2202.05262; the
weights of the terms as in the authors' code). Every step runs from the subject's last token and from the
site's layer on (``suffix``), for many edits at once (``lot``), of which those that are done drop out.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from kedit_core.errors import ModelError
from kedit_core.progress import Advance, Progress
from kedit_locate.config import Search
from kedit_locate.fused import in_one_step
from kedit_locate.lot import Found, NotFiniteError, Site, opened, searched
from kedit_locate.lower import blocks_below
from kedit_locate.parts import read_parts
from kedit_locate.picking import last_mlp
from kedit_locate.rows import EditRows
from kedit_locate.sizes import MEMORY, Sizes, out_of_memory, sizes_for

__all__ = ["Site", "Sizes", "Values", "search_shifts", "search_values"]


@frozen(kw_only=True)
class Values:
    """What the search found for one site, one row an edit.

    Attributes:
        shift: δ (requests, width).
        base: h₀ (requests, width); the value is ``base + shift``.
        nll: (requests,) mean over rows of the target's NLL a token, at the shift.
        steps: (requests,) updates made.
        apart: rows of different lengths were read apart, because pads between them would have changed
            what the model says.
        refusal: why the layers below the site ran at every step although a shift does not change them;
            empty where they ran once, or where there is none.
        sizes: how the edits were cut into lots; a search that is given them does the same sums.
    """

    shift: Tensor = field(repr=False)
    base: Tensor = field(repr=False)
    nll: tuple[float, ...]
    steps: tuple[int, ...]
    apart: bool = False
    refusal: str = ""
    sizes: tuple[Sizes, ...] = ()

    @property
    def value(self) -> Tensor:
        """Return h₀ + δ, (requests, width)."""
        return self.base + self.shift


def search_values(
    model: nn.Module,
    edits: Sequence[EditRows],
    site: str,
    search: Search,
    progress: Progress,
    norm: Tensor | None = None,
    *,
    memory: int = MEMORY,
    sizes: Iterable[Sizes] = (),
) -> Values:
    """Return the value of every edit at one site.

    Args:
        model: in ``eval`` mode, parameters without ``requires_grad``.
        edits: rows of each edit.
        site: path of the module that the shift is added to.
        search: the settings.
        progress: told of each step.
        norm: (requests,) ‖h₀‖ that clamp and decay are relative to; by default that of ``model``. The
            activations of a model that was edited often have grown.
        memory: bytes that the search may take by estimate, beside the model.
        sizes: how an earlier search was cut, for the same sums again.

    Raises:
        ModelError: the loss of an edit is no number, for example because the model overflows.
    """
    where = Site(path=site, norm=norm)
    return search_shifts(model, edits, [where], search, progress, memory=memory, sizes=sizes)[0]


def search_shifts(
    model: nn.Module,
    edits: Sequence[EditRows],
    sites: Sequence[Site],
    search: Search,
    progress: Progress,
    *,
    memory: int = MEMORY,
    sizes: Iterable[Sizes] = (),
) -> tuple[Values, ...]:
    """Return the values of every edit at every site, one for each site; together or alone they come out alike.

    Edits are searched for in lots that fit the memory; a lot for which there is not enough after all
    is cut in half and begun again. Arguments and errors are those of :func:`search_values`.

    Args:
        model: as there.
        edits: as there.
        sites: modules that a shift each is added to, at the same time.
        search: as there.
        progress: told of each step of each edit.
        memory: as there.
        sizes: as there.
    """
    paths = [site.path for site in sites]
    blocks, narrow = blocks_below(model, paths), last_mlp(model, paths)
    chosen = sizes_for(model, edits, len(blocks), memory)
    given = iter(sizes)
    lots: list[_Searched] = []
    task = progress.task("searching values", search.steps * len(edits), "steps")
    with in_one_step(model), task as advance:
        start = 0
        while start < len(edits):
            size = next(given, chosen)
            size = evolve(size, edits=min(size.edits, len(edits) - start))
            some = slice(start, start + size.edits)
            if any(one.refusal for one in lots):
                blocks, narrow = (), None
            own = [_within(site, some) for site in sites]
            cut = (search, blocks, narrow, size, advance, start)
            one = _searched(model, edits[some], own, *cut)
            if one is None:
                chosen, given = size.halved(), iter(())
            else:
                lots.append(one)
                start += size.edits
    return tuple(_values(lots, number) for number in range(len(sites)))


@frozen(kw_only=True)
class _Searched:
    """A lot after its search.

    Attributes:
        found: its shifts.
        sizes: how it was cut.
        apart: rows of different lengths were read apart.
        refusal: why no layer was skipped; else empty.
    """

    found: Found
    sizes: Sizes
    apart: bool
    refusal: str


def _searched(
    model: nn.Module,
    edits: Sequence[EditRows],
    sites: Sequence[Site],
    search: Search,
    blocks: Sequence[str],
    narrow: str | None,
    size: Sizes,
    advance: Advance,
    start: int,
) -> _Searched | None:
    """Return what the search found for the lot that starts at some edit; None for want of memory."""
    try:
        parts = read_parts(model, edits, size.rows)
        apart = any(part.apart for part in parts)
        lot = opened(model, parts, sites, blocks, narrow=narrow, verify=start == 0)
        found = searched(lot, search, advance)
    except NotFiniteError as error:
        raise ModelError(
            "the search for a value",
            f"the loss of edit {start + error.edit} is not finite; the model overflows on its rows in "
            "this dtype",
        ) from None
    except RuntimeError as error:
        if not out_of_memory(error) or size == size.halved():
            raise
        return None
    return _Searched(found=found, sizes=size, apart=apart, refusal=lot.refusal)


def _within(site: Site, some: slice) -> Site:
    return site if site.norm is None else evolve(site, norm=site.norm[some])


def _values(lots: Sequence[_Searched], site: int) -> Values:
    """Return what was found in all lots for one site."""
    return Values(
        shift=torch.cat([one.found.shift[site] for one in lots]),
        base=torch.cat([one.found.base[site] for one in lots]),
        nll=tuple(chain.from_iterable(one.found.nll.tolist() for one in lots)),
        steps=tuple(chain.from_iterable(one.found.steps.tolist() for one in lots)),
        apart=any(one.apart for one in lots),
        refusal=next((one.refusal for one in lots if one.refusal), ""),
        sizes=tuple(one.sizes for one in lots),
    )
