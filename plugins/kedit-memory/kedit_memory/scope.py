"""The scope classifier: which edit of a memory a prompt meets, if any.

A linear map takes the frozen, pooled states of a prompt to a direction; an edit is the direction of its own
prompt. Beside it stands which words the prompt says, and which of them name the edit's subject (``lexicons``).
With

    s = max over edits of  cos(prompt, edit) + w · share of the edit's subject that stands in the prompt
        + tanh(leaning of the prompt),

    p = σ((s - threshold) / temperature)

is the probability that the prompt is in the scope of that edit; from ½ on it is. Map, w, leaning, threshold
and temperature are trained (``scope_training``): cosines of raw states cannot tell "where was X born" from
"which language does X speak", and no map that was trained on some names and wordings reads all others. A
prompt in words that the training knows leans away from all edits but the one that it asks for; one in other
words leans to whatever subject it names. An edit whose own prompt leans away so far that it would miss the
threshold is given what it lacks. All parts stand side by side in one vector, so that s is one product.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core.digests import digest
from kedit_core.errors import DeltaError
from kedit_core.requests import EditRequest
from kedit_memory.encoders import Encoder, encoder_from
from kedit_memory.kept import OUTSIDE
from kedit_memory.lexicons import Lexicon
from kedit_memory.pooling import Sites

Search = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes queries (queries, length) and a memory (edits, length), gives the largest product of each query and
its place, (queries,) each."""

_TILE = 8192
_ROUNDING = 1e-4  # an edit's own prompt comes at least so far over the threshold
_PREFIX = "scope."
_NAMES = ("projection", "offset", "leaning")
_RARITY = f"{_PREFIX}rarity"


@frozen(kw_only=True)
class ScopeClassifier:
    """A trained scope classifier.

    Attributes:
        projection: (width, features) float32.
        offset: (width,) float32.
        leaning: (features + 1,) float32, the leaning of states, linear in them, its offset last.
        sites: blocks whose inputs are pooled; none where an encoder reads.
        threshold: score from which a prompt is in scope.
        temperature: how fast the probability grows around it.
        encoder: reads the prompts instead of the model; None for the model's own states.
        lexicon: reads their words; None where words do not count.
        words: how much they count, w.
    """

    projection: Tensor = field(eq=digest, repr=False)
    offset: Tensor = field(eq=digest, repr=False)
    leaning: Tensor = field(eq=digest, repr=False)
    sites: Sites
    threshold: float
    temperature: float
    encoder: Encoder | None = None
    lexicon: Lexicon | None = None
    words: float = 0.0

    @property
    def source(self) -> Sites | Encoder:
        """Return what reads prompts for it (``readers``)."""
        return self.encoder or self.sites

    @property
    def length(self) -> int:
        """Return how many numbers a vector has."""
        return len(self.projection) + 2 + (0 if self.lexicon is None else self.lexicon.width)

    def embed(self, states: Tensor) -> Tensor:
        """Return the vectors of prompts, (rows, length): directions, leanings and what their words say.

        Args:
            states: (rows, features), and (rows, words) of the lexicon behind, if there is one.
        """
        directions, said = self._parts(states)
        pooled = states[:, : self.projection.shape[1]]
        leanings = torch.tanh(pooled @ self.leaning[:-1] + self.leaning[-1])[:, None]
        ones = torch.ones_like(leanings)
        return torch.cat([directions, leanings, ones, self.words * said], dim=1)

    def embed_edits(self, states: Tensor, named: Tensor) -> Tensor:
        """Return the vectors of edits (rows, length), which those of prompts are multiplied with.

        Args:
            states: of the edits' own prompts, as for ``embed``.
            named: (rows, words) their subjects, as the lexicon gives them.
        """
        directions, _ = self._parts(states)
        ones = torch.ones_like(directions[:, :1])
        found = torch.cat([directions, ones, torch.zeros_like(ones), named], dim=1)
        own = (self.embed(states) * found).sum(1)
        lacks = (self.threshold + _ROUNDING - own).clamp(min=0)
        return torch.cat([directions, ones, lacks[:, None], named], dim=1)

    def named(self, requests: Sequence[EditRequest]) -> Tensor:
        """Return what the words of edits are, (edits, words); (edits, 0) without a lexicon."""
        subjects = [request.subject or request.prompt for request in requests]
        return named_in(self.lexicon, subjects)

    def _parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions (rows, width) and what the words of the rows say, (rows, words)."""
        features = self.projection.shape[1]
        mapped = states[:, :features] @ self.projection.T + self.offset
        return torch.nn.functional.normalize(mapped, dim=1), states[:, features:]

    def match(self, queries: Tensor, memory: Tensor, search: Search | None = None) -> "Match":
        """Return which edit each query meets.

        Args:
            queries: (queries, length) vectors of ``embed``.
            memory: (edits, length) vectors of ``embed_edits``.
            search: by default :func:`top_one`.
        """
        if not len(memory):
            none = torch.full((len(queries),), OUTSIDE, device=queries.device)
            return Match(probability=torch.zeros(len(queries), device=queries.device), edit=none)
        best, place = (search or top_one)(queries, memory)
        probability = torch.sigmoid((best - self.threshold) / self.temperature)
        # The score decides, as in the calibration; a probability rounds at the edge.
        edit = torch.where(best >= self.threshold, place, OUTSIDE)
        return Match(probability=probability, edit=edit)

    def to(self, device: Any) -> "ScopeClassifier":
        """Return the same on a device."""
        moved = {name: getattr(self, name).to(device) for name in _NAMES}
        return evolve(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors, for a memory or a file."""
        rarity = {} if self.lexicon is None else {_RARITY: self.lexicon.rarity}
        return {**{_PREFIX + name: getattr(self, name) for name in _NAMES}, **rarity}

    def settings(self) -> dict[str, Any]:
        """Return the rest of it as JSON values."""
        encoder = {} if self.encoder is None else {"encoder": self.encoder.as_json()}
        words = {"words": self.words, "lexicon": self.lexicon.settings()} if self.lexicon else {}
        return {
            "sites": {"means": list(self.sites.means), "lasts": list(self.sites.lasts)},
            "threshold": self.threshold,
            "temperature": self.temperature,
            **encoder,
            **words,
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
        DeltaError: something of it is missing, as its leaning is where an earlier version trained it.
    """
    names = {name.removeprefix(_PREFIX) for name in tensors if name.startswith(_PREFIX)}
    if set(_NAMES) - names == {"leaning"}:
        raise DeltaError(
            where,
            "holds a scope classifier of an earlier version, which knows no leaning; train one anew and "
            "make the edits with it",
        )
    try:
        return ScopeClassifier(
            **{name: tensors[_PREFIX + name].float() for name in _NAMES},
            sites=Sites(**{kind: tuple(paths) for kind, paths in settings["sites"].items()}),
            threshold=float(settings["threshold"]),
            temperature=float(settings["temperature"]),
            encoder=encoder_from(settings["encoder"]) if "encoder" in settings else None,
            lexicon=_lexicon_from(tensors, settings.get("lexicon")),
            words=float(settings.get("words", 0.0)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DeltaError(where, f"holds no whole scope classifier ({error})") from None


def _lexicon_from(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None
) -> Lexicon | None:
    if settings is None:
        return None
    return Lexicon(width=int(settings["width"]), rarity=tensors[_RARITY].float())


def named_in(lexicon: Lexicon | None, subjects: Sequence[str]) -> Tensor:
    """Return subjects as a lexicon gives them, (subjects, words); (subjects, 0) without one."""
    return torch.zeros(len(subjects), 0) if lexicon is None else lexicon.named(subjects)


def top_one(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest product of each query with the memory and its place, tile by tile.

    Of equal products the first counts. No queries × memory matrix is ever there.

    Args:
        queries: (queries, length).
        memory: (edits, length), at least one.
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
