"""The scope classifier: which edit of a memory a prompt meets, if any.

A linear map takes the frozen, pooled states of a prompt to a direction; an edit is the direction of its own
prompt. With s the largest cosine between the two, over all edits,

    p = σ((s - threshold) / temperature)

is the probability that the prompt is in the scope of that edit; from ½ on it is. Map, threshold and
temperature are trained (``scope_training``): cosines of raw states cannot tell "where was X born" from
"which language does X speak".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_memory.encoders import Encoder, encoder_from
from kedit_memory.kept import OUTSIDE
from kedit_memory.pooling import Sites

Search = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes queries (queries, width) and a memory (edits, width), gives the largest product of each query and
its place, (queries,) each."""

_TILE = 8192
_PREFIX = "scope."
_NAMES = ("projection", "offset")


@frozen(kw_only=True)
class ScopeClassifier:
    """A trained scope classifier.

    Attributes:
        projection: (width, features) float32.
        offset: (width,) float32.
        sites: blocks whose inputs are pooled; none where an encoder reads.
        threshold: cosine from which a prompt is in scope.
        temperature: how fast the probability grows around it.
        encoder: reads the prompts instead of the model; None for the model's own states.
    """

    projection: Tensor = field(eq=digest, repr=False)
    offset: Tensor = field(eq=digest, repr=False)
    sites: Sites
    threshold: float
    temperature: float
    encoder: Encoder | None = None

    @property
    def source(self) -> Sites | Encoder:
        """Return what reads prompts for it (``readers``)."""
        return self.encoder or self.sites

    def embed(self, pooled: Tensor) -> Tensor:
        """Return directions (rows, width) of pooled states (rows, features)."""
        return torch.nn.functional.normalize(pooled @ self.projection.T + self.offset, dim=1)

    def match(self, queries: Tensor, memory: Tensor, search: Search | None = None) -> "Match":
        """Return which edit each query meets.

        Args:
            queries: (queries, width) directions.
            memory: (edits, width) directions.
            search: by default :func:`top_one`.
        """
        if not len(memory):
            none = torch.full((len(queries),), OUTSIDE, device=queries.device)
            return Match(probability=torch.zeros(len(queries), device=queries.device), edit=none)
        best, place = (search or top_one)(queries, memory)
        probability = torch.sigmoid((best - self.threshold) / self.temperature)
        # The cosine decides, as in the calibration; a probability rounds at the edge.
        edit = torch.where(best >= self.threshold, place, OUTSIDE)
        return Match(probability=probability, edit=edit)

    def to(self, device: Any) -> "ScopeClassifier":
        """Return the same on a device."""
        moved = {name: getattr(self, name).to(device) for name in _NAMES}
        return evolve(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors, for a memory or a file."""
        return {_PREFIX + name: getattr(self, name) for name in _NAMES}

    def settings(self) -> dict[str, Any]:
        """Return the rest of it as JSON values."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder.as_json()}
        return {
            "sites": {"means": list(self.sites.means), "lasts": list(self.sites.lasts)},
            "threshold": self.threshold,
            "temperature": self.temperature,
            **encoder,
        }


@frozen(kw_only=True)
class Match:
    """What queries meet.

    Attributes:
        probability: (queries,) of being in scope of the nearest edit.
        edit: (queries,) int64, its place in the memory, ``OUTSIDE`` for none.
    """

    probability: Tensor = field(eq=False)
    edit: Tensor = field(eq=False)


def classifier_from(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> ScopeClassifier:
    """Return the classifier that a memory or a file holds.

    Raises:
        DeltaError: something of it is missing.
    """
    try:
        return ScopeClassifier(
            **{name: tensors[_PREFIX + name].float() for name in _NAMES},
            sites=Sites(**{kind: tuple(paths) for kind, paths in settings["sites"].items()}),
            threshold=float(settings["threshold"]),
            temperature=float(settings["temperature"]),
            encoder=encoder_from(settings["encoder"]) if "encoder" in settings else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DeltaError(where, f"holds no whole scope classifier ({error})") from None


def top_one(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest product of each query with the memory and its place, tile by tile.

    Of equal products the first counts. No queries × memory matrix is ever there.

    Args:
        queries: (queries, width).
        memory: (edits, width), at least one.
    """
    best = torch.full((len(queries),), -torch.inf, device=queries.device)
    place = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(memory), _TILE):
        found, where = (queries @ memory[start : start + _TILE].T).max(dim=1)
        better = found > best
        best = torch.where(better, found, best)
        place = torch.where(better, where + start, place)
    return best, place


def request_ids(match: Match, ids: Sequence[str]) -> tuple[str | None, ...]:
    """Return per query the id of the edit it meets, or None.

    Args:
        match: of the queries.
        ids: of the memory's edits.
    """
    return tuple(None if place == OUTSIDE else ids[place] for place in match.edit.tolist())
