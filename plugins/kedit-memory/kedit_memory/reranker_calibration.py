"""Gate, threshold and temperature of a re-ranker, from facts that it was not trained on."""

# Nothing here is secret: the choices only have to come out the same everywhere.
# ruff: noqa: S311

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn.functional import softplus

from kedit_core.tokens import Ids
from kedit_memory.rerankers import Reranker, Reranking
from kedit_memory.scope import ScopeClassifier, top_one
from kedit_memory.scope_calibration import Calibration, auc_of
from kedit_memory.scope_examples import Examples

_LOWEST = -1e4
_MOST = 256


def calibrated_reranker(
    base: Any,
    tokenizer: Any,
    classifier: ScopeClassifier,
    reranker: Reranker,
    examples: Examples,
    crowd: Examples,
    *,
    rejects: float,
    rejects_same_subject: float,
    recall: float,
    seed: int,
) -> tuple[Reranker, Calibration]:
    """Return a re-ranker with gate, threshold and temperature from a validation split, and how it does there.

    The gate lets a share of the wordings through, and the edits' own prompts. The threshold is the lowest
    that keeps enough of either kind of negative out, as the classifier's is found (``scope_calibration``).

    Args:
        base: lends its embeddings.
        tokenizer: the base's.
        classifier: trained.
        reranker: trained.
        examples: to validate on, with their prompts; each fact has an edit in the memory, under its own prompt.
        crowd: more facts, whose edits fill the memory up.
        rejects: share of neighbours to keep out.
        rejects_same_subject: share of other questions about the edited subjects to keep out.
        recall: share of the wordings that the gate lets through.
        seed: of the choice of prompts, at most 256 of a kind.
    """
    asked = _Asked((base, tokenizer), classifier, examples, crowd, seed)
    reranker = asked.gated(reranker, recall)
    inside, right = asked.wordings(reranker)
    outside = {kind: asked.nearest(reranker, kind) for kind in ("neighbours", "others")}
    wanted = {"neighbours": rejects, "others": rejects_same_subject}
    edges = [float(near.quantile(wanted[kind])) for kind, near in outside.items() if near.numel()]
    strangers = asked.nearest(reranker, "neighbours", crowded=False)
    if strangers.numel():
        share = len(examples) / (len(examples) + len(crowd))
        edges.append(float(strangers.quantile(rejects**share)))
    threshold = max(edges, default=0.0)
    temperature = _temperature(inside, torch.cat(list(outside.values())), threshold)
    near = {kind: one for kind, one in outside.items() if one.numel()}
    found = Calibration(
        auc={kind: auc_of(inside, one) for kind, one in near.items()},
        accepted=float((right & (inside >= threshold)).float().mean()) if len(inside) else 0.0,
        rejected={kind: float((one < threshold).float().mean()) for kind, one in near.items()},
        edits=len(examples) + len(crowd),
    )
    return evolve(reranker, threshold=threshold, temperature=temperature), found


class _Asked:
    """Prompts of a validation split, asked of its edits among a crowd of others or alone."""

    def __init__(
        self,
        beside: tuple[Any, Any],
        classifier: ScopeClassifier,
        examples: Examples,
        crowd: Examples,
        seed: int,
    ) -> None:
        self._beside, self._examples, self._seed = beside, examples, seed
        self._classifier = classifier
        parts = (examples, crowd)
        self._memory = torch.cat(
            [classifier.embed_edits(one.states[one.wordings[:, 0]], one.named) for one in parts]
        )
        self._prompts = [
            one.prompts[place] for one in parts for place in one.wordings[:, 0].tolist()
        ]

    def gated(self, reranker: Reranker, recall: float) -> Reranker:
        """Return a re-ranker whose gate lets a share of the wordings through."""
        places = [place for place, _ in self._other_wordings()]
        if not places:
            return reranker
        nearest, _ = top_one(self._asked(places)[0], self._memory)
        gate = min(float(nearest.quantile(1.0 - recall)), self._classifier.threshold)
        return evolve(reranker, gate=gate)

    def wordings(self, reranker: Reranker) -> tuple[Tensor, Tensor]:
        """Return the largest logit of each other wording, and whether it is that of its own edit."""
        chosen = self._other_wordings()
        best, place = self._best(reranker, [one for one, _ in chosen])
        own = torch.tensor([fact for _, fact in chosen], dtype=torch.long)
        return best, place == own

    def nearest(self, reranker: Reranker, kind: str, *, crowded: bool = True) -> Tensor:
        """Return the largest logit of each prompt of a kind that no edit is asked for by."""
        table: Tensor = getattr(self._examples, kind)
        asked = set(self._examples.wordings.flatten().tolist())  # by which edits are asked for
        places = sorted(set(table[table >= 0].tolist()) - asked)
        chosen = Random(f"{kind} {self._seed}").sample(places, min(_MOST, len(places)))
        return self._best(reranker, chosen, crowded=crowded)[0]

    def _other_wordings(self) -> list[tuple[int, int]]:
        rows = enumerate(self._examples.wordings[:, 1:].tolist())
        found = [(place, fact) for fact, row in rows for place in row if place >= 0]
        return Random(f"wordings {self._seed}").sample(found, min(_MOST, len(found)))

    def _asked(self, places: Sequence[int]) -> tuple[Tensor, list[Ids]]:
        vectors = self._classifier.embed(self._examples.states[list(places)])
        return vectors, [self._examples.prompts[place] for place in places]

    def _best(
        self, reranker: Reranker, places: Sequence[int], *, crowded: bool = True
    ) -> tuple[Tensor, Tensor]:
        queries, prompts = self._asked(places)
        count = len(self._prompts) if crowded else len(self._examples)
        search = Reranking(*self._beside, reranker, self._memory[:count], self._prompts[:count])
        best, place = search.best(queries, prompts, alone=False)
        return best.clamp(min=_LOWEST), place


def _temperature(inside: Tensor, outside: Tensor, threshold: float) -> float:
    """Return the temperature under which what is inside and what is not are likeliest, both alike."""
    choices = torch.logspace(-2, 1.5, 71)
    losses = [
        float(softplus(-(inside - threshold) / one).mean())
        + float(softplus((outside - threshold) / one).mean())
        for one in choices.tolist()
    ]
    return float(choices[int(torch.tensor(losses).nan_to_num(torch.inf).argmin())])
