"""How values are to be written, what a pass wants, and what was written: what recipes say and hear."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import asdict, evolve, field, frozen
from torch import Tensor

from kedit_core.deltas import Dense, LowRank
from kedit_core.pieces import Projection
from kedit_locate.config import Search
from kedit_locate.conflicts import Conflicts
from kedit_locate.keys import Columns
from kedit_locate.rows import EditRows
from kedit_locate.sizes import Sizes, noted
from kedit_locate.solver import Metric
from kedit_locate.values import Values


@frozen(kw_only=True)
class Plan:
    """Where and how values are written.

    Attributes:
        downs: the down-projections, lowest layer first.
        metrics: of each.
        site: path of the module whose output the values are for; not above the last of ``downs``.
        penalty: λ, the weight of the second moment against the keys.
        columns: which keys stand for an edit.
        shares: ``linear`` writes 1/n of what is missing with n layers to go (MEMIT), ``root`` 1/√n (PMET).
        exact: earlier keys count in the metric.
        until: probability of the target (geometric mean over its tokens and over all contexts) at which
            an edit alone sticks.
        crowded: what that falls to as keys of edits fill a layer (``sticking``).
        passes: writes at most.
        shrink: what is left of an update's length where earlier edits are in force.
    """

    downs: Sequence[Projection]
    metrics: Sequence[Metric] = field(repr=False)
    site: str
    penalty: float
    columns: Columns
    shares: Literal["linear", "root"]
    exact: bool
    until: float
    crowded: float
    passes: int
    shrink: float = 1.0


@frozen(kw_only=True)
class Wanted:
    """What a pass wants values for.

    Attributes:
        edits: rows of each.
        norms: (requests,) that clamps are relative to: of what the site writes in the unedited model.
        stop: loss at which a search has gone far enough; None where nothing is repeated.
        number: of the pass, from 0.
    """

    edits: Sequence[EditRows]
    norms: Tensor = field(repr=False)
    stop: float | None
    number: int

    def bounded(self, search: Search) -> Search:
        """Return settings that end a search where it has gone far enough for this pass."""
        return search if self.stop is None else evolve(search, stop=self.stop)


Find = Callable[[Wanted], Values]
"""Searches values in the model as it is."""


@frozen(kw_only=True)
class Written:
    """What was written.

    Attributes:
        parts: one update a layer.
        until: probability at which an edit stuck.
        carry: per projection the keys of this batch in the model as it is afterwards,
            (requests · columns, in_features), by the projection's path.
        passes: per pass how many edits it wrote, and the mean and the least probability after it.
        probability: (requests,) of each target at the end.
        searched: (requests,) mean NLL a token that the last search of each edit ended with.
        sizes: per pass how the search was cut into lots.
        conditions: per layer the condition number of the system that was solved, by estimate, the worst of
            all passes.
        conflicts: edits that ask for different things at nearly the same key.
        refusal: why a search ran the layers below its site; empty when it skipped them.
        apart: rows of different lengths were read apart, because pads would have changed what is said.
    """

    parts: tuple[LowRank | Dense, ...]
    until: float
    carry: Mapping[str, Tensor] = field(repr=False)
    passes: tuple[Mapping[str, float], ...]
    probability: tuple[float, ...]
    searched: tuple[float, ...]
    sizes: tuple[tuple[Sizes, ...], ...]
    conditions: tuple[float, ...]
    conflicts: Conflicts
    refusal: str = ""
    apart: bool = False


def notes_of(plan: Plan, written: Written) -> dict[str, Any]:
    """Return what the provenance of a delta tells of a write.

    Args:
        plan: that it followed.
        written: what came out.
    """
    notes = {
        "site": plan.site,
        "until": written.until,
        "passes": list(written.passes),
        "target_probability": list(written.probability),
        "target_nll": list(written.searched),
        "sizes": [noted(lots) for lots in written.sizes],
        "ridge": [metric.ridge for metric in plan.metrics],
        "condition": {
            "moments": [metric.condition for metric in plan.metrics],
            "systems": list(written.conditions),
        },
    }
    if written.conflicts.count:
        notes["conflicts"] = asdict(written.conflicts)
        notes["warnings"] = list(written.conflicts.warnings)
    if written.refusal:
        notes["search"] = f"all layers ran at every step: {written.refusal}"
    if written.apart:
        notes["rows"] = (
            "read one length at a time: pads between them would change what this model says"
        )
    return notes
