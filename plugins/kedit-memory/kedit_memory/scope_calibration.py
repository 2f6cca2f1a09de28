"""Calibration of the scope classifier: where its threshold lies, how sure it is, and what that is worth."""

from collections.abc import Mapping, Sequence

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn.functional import softplus

from kedit_memory.scope import ScopeClassifier, top_one
from kedit_memory.scope_examples import Examples

_PAIR = 2


@frozen(kw_only=True)
class Calibration:
    """What a classifier does on facts that it was not trained on.

    Attributes:
        auc: by kind of negative, beside the wordings: the chance that a wording is nearer to the memory.
        accepted: share of the wordings that meet their own edit.
        rejected: by kind, share of the prompts that meet none.
        edits: in the memory.
    """

    auc: Mapping[str, float]
    accepted: float
    rejected: Mapping[str, float]
    edits: int = field(default=0)


def calibrated(
    classifier: ScopeClassifier,
    examples: Examples,
    crowd: Examples,
    *,
    rejects: float,
    rejects_same_subject: float,
    accepts: float = 1.0,
) -> tuple[ScopeClassifier, Calibration]:
    """Return a classifier with threshold and temperature from a validation split, and how it does there.

    The threshold keeps enough of either kind of negative out. Where it can, it is as high as other wordings
    of the edits allow, since more is asked about a subject than anybody trains on; then the temperature is
    the one under which the decisions are likeliest. Edits that were trained on lie further from strangers than
    others do, so neighbours are kept out of the edits of ``examples`` alone, as many as it takes for so
    large a memory: to keep a share r out of n edits is to keep r^(m/n) out of m, though no more than so many
    facts can tell: two subjects whose names are taken for each other set no threshold. Of other questions
    those count that subjects of that kind have, where any are known: nonsense about one is asked by nobody.

    Args:
        classifier: trained.
        examples: to validate on; every fact has an edit in the memory, under its own prompt.
        crowd: more facts, whose edits fill the memory up.
        rejects: share of neighbours to keep out.
        rejects_same_subject: share of other questions about the edited subjects to keep out.
        accepts: share of the other wordings to let in, as far as that leaves enough out.
    """
    trained = classifier.threshold
    classifier = evolve(classifier, threshold=-torch.inf)  # so that no edit lacks anything
    memory = torch.cat([_edits(classifier, one) for one in (examples, crowd)])
    inside, right = _wordings(classifier, examples, memory)
    outside = _outside(classifier, examples, memory)
    wanted = {"neighbours": rejects, "others": rejects_same_subject}
    edges = [float(near.quantile(wanted[kind])) for kind, near in outside.items()]
    strangers = _strangers(classifier, examples)
    if strangers.numel():
        share = min(rejects ** (len(examples) / len(memory)), 1 - _PAIR / len(examples))
        edges.append(float(strangers.quantile(max(share, 0.0))))
    if inside.numel():
        edges.append(float(inside.quantile(1 - accepts)))
    threshold = max(edges, default=trained)
    every = torch.cat([*outside.values(), torch.empty(0)])
    temperature = _temperature(inside, every, threshold)
    found = Calibration(
        auc={kind: auc_of(inside, near) for kind, near in outside.items()},
        accepted=float((right & (inside >= threshold)).float().mean()) if inside.numel() else 0.0,
        rejected={kind: float((near < threshold).float().mean()) for kind, near in outside.items()},
        edits=len(memory),
    )
    return evolve(classifier, threshold=threshold, temperature=temperature), found


def auc_of(inside: Tensor, outside: Tensor) -> float:
    """Return the chance that a value of one kind is larger than one of the other; ties count half."""
    order = torch.cat([inside, outside]).double()
    values, place = torch.unique(order, return_inverse=True)
    counts = torch.bincount(place, minlength=len(values)).double()
    rank = counts.cumsum(0) - (counts - 1) / 2  # mean rank of equal values, from 1
    ranks = rank[place[: len(inside)]].sum()
    wins = ranks - len(inside) * (len(inside) + 1) / 2
    return float(wins / (len(inside) * len(outside)))


def _edits(classifier: ScopeClassifier, examples: Examples) -> Tensor:
    return classifier.embed_edits(examples.states[examples.wordings[:, 0]], examples.named)


def _wordings(
    classifier: ScopeClassifier, examples: Examples, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how near each other wording comes to the memory, and whether to its own edit."""
    table = examples.wordings[:, 1:]
    there = table >= 0
    own = torch.arange(len(table))[:, None].expand_as(table)[there]
    best, place = top_one(classifier.embed(examples.states[table[there]]), memory)
    return best, place == own


def _outside(classifier: ScopeClassifier, examples: Examples, memory: Tensor) -> dict[str, Tensor]:
    """Return by kind how near prompts come that should meet no edit, where there are any."""
    asked = examples.asked_more if examples.asked_more.any() else ~examples.asked_more
    kinds = {"neighbours": examples.neighbours, "others": examples.others[asked]}
    found = {kind: _nearest(classifier, examples, one, memory) for kind, one in kinds.items()}
    return {kind: near for kind, near in found.items() if near.numel()}


def _nearest(
    classifier: ScopeClassifier, examples: Examples, table: Tensor, memory: Tensor
) -> Tensor:
    return top_one(classifier.embed(examples.states[table[table >= 0]]), memory)[0]


def _strangers(classifier: ScopeClassifier, examples: Examples) -> Tensor:
    """Return how near neighbours come to the edits of these facts, and wordings to those of other subjects.

    What else is asked about a subject is a question of its own (``others``).
    """
    memory = _edits(classifier, examples)
    if len(memory) < 2:
        return torch.empty(0)
    found = [_nearest(classifier, examples, examples.neighbours, memory)]
    for own, subject in enumerate(examples.subjects):
        strange = torch.tensor([one != subject for one in examples.subjects])
        table = examples.wordings[own]
        if strange.any():
            queries = classifier.embed(examples.states[table[table >= 0]])
            found.append(top_one(queries, memory[strange])[0])
    return torch.cat(found)


def _temperature(inside: Tensor, outside: Tensor, threshold: float) -> float:
    """Return the temperature under which what is inside and what is not are likeliest, both alike."""
    choices = torch.logspace(-3, 0, 61)
    losses: Sequence[float] = [
        float(softplus(-(inside - threshold) / one).mean())
        + float(softplus((outside - threshold) / one).mean())
        for one in choices.tolist()
    ]
    return float(choices[int(torch.tensor(losses).nan_to_num(torch.inf).argmin())])
