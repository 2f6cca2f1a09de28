"""A shard that is solved for: the update that meets the values of its edits and disturbs other keys least.

The search for values and the solution are MEMIT's (Meng et al., 2022, arXiv:2210.07229), for one layer; what
would be written into the weights becomes the shard's update. Keys of its earlier edits count as much as the
new ones, so that a stream of edits does not overwrite itself; those of other shards do not count at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kedit_core import Delta, EditRequest, TensorCache, Weights
from kedit_core.progress import Progress
from kedit_locate.layers import site_of
from kedit_locate.moments import metrics_of
from kedit_locate.plans import Plan, Wanted, notes_of
from kedit_locate.rows import edit_rows
from kedit_locate.sizes import noted_before
from kedit_locate.spreading import write_until_it_sticks
from kedit_locate.values import Values, search_values
from kedit_wise.config import ClosedForm
from kedit_wise.updates import as_parts, with_parts
from kedit_wise.writing import Held, Written


class Solver:
    """Writes edits into shards beside one projection."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        settings: ClosedForm,
        layer: int,
        prefixes: Sequence[str],
        weights: Weights,
        progress: Progress,
        cache: TensorCache,
    ) -> None:
        """Take what all shards have in common: their projection, its metric, the texts before prompts."""
        self._down = weights.layout.down_of(layer)
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._prefixes, self._weights, self._progress = prefixes, weights, progress
        about = (settings.statistics, weights, cache, progress)
        self._plan = Plan(
            downs=[self._down],
            metrics=metrics_of(model, tokenizer, [self._down], *about),
            site=site_of(weights.layout, layer),
            penalty=settings.penalty,
            columns=settings.keys,
            shares="linear",
            exact=settings.history == "exact",
            until=settings.until,
            crowded=settings.crowded,
            passes=settings.passes,
        )

    def write(
        self, requests: Sequence[EditRequest], held: Held, notes: Mapping[str, Any], *, chat: bool
    ) -> Written:
        """Return a shard with more edits in it, as ``Writer`` says."""
        edits = [edit_rows(self._tokenizer, one, self._prefixes, chat=chat) for one in requests]

        def find(wanted: Wanted) -> Values:
            sizes = noted_before(notes, wanted.number)
            search = wanted.bounded(self._settings.search)
            about = (self._model, wanted.edits, self._plan.site, search, self._progress)
            return search_values(*about, wanted.norms, sizes=sizes)

        with self._weights.temporarily(as_parts(held.update, self._down.weight)):
            written = write_until_it_sticks(
                self._model,
                edits,
                self._plan,
                find,
                self._history(held),
                self._weights,
                self._progress,
            )
        update = with_parts(held.update, written.parts)
        assert update is not None
        new = written.carry[self._down.path].cpu()  # (new edits · columns, in_features)
        return Written(
            update=update,
            keys=new.reshape(len(requests), -1, new.shape[1]),
            notes=notes_of(self._plan, written),
        )

    def _history(self, held: Held) -> list[Delta]:
        """Return the shard's earlier edits as deltas whose keys a write must keep."""
        if not held.requests:
            return []
        carry = {self._down.path: held.keys.flatten(0, 1)}
        return [Delta(method="wise", requests=held.requests, parts=(), carry=carry)]
