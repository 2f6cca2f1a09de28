"""Training of the scope classifier: which prompts ask the same, learned from facts that nobody judges later.

A step takes a memory of some facts, each under one of its wordings, and queries: other wordings of facts in it,
which should meet their own; and other questions about the same subjects, neighbours, and wordings of facts
that are not in it, which should meet none. With s the cosine of a query and an edit, l = a (s - b), and y
whether the two ask the same, the loss is binary cross-entropy, summed over the memory:

    Σ log(1 + exp(-l)) where y  +  Σ log(1 + exp(l)) where not,

so that what is hard in a large memory counts most. Memories of all sizes are seen, up to all facts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn.functional import dropout, normalize, softplus

from kedit_core.progress import Progress
from kedit_memory.pooling import Sites
from kedit_memory.scope import ScopeClassifier, top_one
from kedit_memory.scope_examples import Examples

_SHARP, _EDGE = 3.0, 0.5  # log a and b at the start
_DECAY = 3.0  # of the map, so strong that it keeps what many prompts agree on
_QUERIES = {"wordings": 128, "others": 96, "neighbours": 64, "absent": 64}
_SMALLEST = 32


@frozen(kw_only=True)
class Lesson:
    """How a scope classifier is trained.

    Attributes:
        width: of its directions.
        steps: of Adam.
        lr: at the start; it falls to nothing over the second half.
        dropout: share of the pooled states that is hidden at each step.
        seed: of the draws and of the projection's start.
    """

    width: int = 256
    steps: int = 1200
    lr: float = 1e-3
    dropout: float = 0.05
    seed: int = 0


def train_scope(
    examples: Examples,
    sites: Sites,
    lesson: Lesson,
    progress: Progress,
    start: ScopeClassifier | None = None,
) -> ScopeClassifier:
    """Return a classifier that was trained on examples; its threshold is not calibrated yet.

    Args:
        examples: of facts that are not judged later.
        sites: where their states were pooled.
        lesson: how to train.
        progress: hears how far it is.
        start: an earlier classifier to go on from.
    """
    chance = torch.Generator().manual_seed(lesson.seed)
    centre, spread = examples.pooled.mean(0), examples.pooled.std(0).clamp(min=1e-6)
    pooled = (examples.pooled - centre) / spread  # (prompts, features)
    features = pooled.shape[1]
    matrix = torch.randn(lesson.width, features, generator=chance) / features**0.5
    shift = torch.zeros(lesson.width)
    if start is not None:
        matrix, shift = start.projection * spread, start.offset + start.projection @ centre
    weights = [matrix.requires_grad_(), shift.requires_grad_()]
    edge = [torch.tensor(value, requires_grad=True) for value in (_SHARP, _EDGE)]
    adam = torch.optim.AdamW(
        [{"params": weights, "weight_decay": _DECAY}, {"params": edge, "weight_decay": 0.0}]
    )
    with torch.enable_grad(), progress.task("training the scope", lesson.steps, "steps") as done:
        for step in range(lesson.steps):
            for group in adam.param_groups:
                group["lr"] = lesson.lr * min(1.0, 2 * (1 - step / lesson.steps))
            drawn = _draw(examples, chance)
            states = pooled[torch.cat([drawn.memory, drawn.queries])]
            if lesson.dropout:
                with _seeded(chance):
                    states = dropout(states, lesson.dropout)
            found = normalize(states @ matrix.T + shift, dim=1)
            loss = _loss(found, drawn, *edge)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            done(1)
    projection = matrix.detach() / spread  # (width, features), of states as they are
    offset = shift.detach() - projection @ centre
    return _classifier(projection, offset, edge[0].detach(), edge[1].detach(), sites)


def _classifier(
    projection: Tensor, offset: Tensor, sharp: Tensor, edge: Tensor, sites: Sites
) -> ScopeClassifier:
    return ScopeClassifier(
        projection=projection,
        offset=offset,
        sites=sites,
        threshold=float(edge),
        temperature=float(torch.exp(-sharp)),
    )


@contextmanager
def _seeded(chance: torch.Generator) -> Iterator[None]:
    """Let functions that take no generator draw from this one's stream, and nobody else notice."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=chance)))
        yield


@frozen(kw_only=True)
class _Drawn:
    """One step's prompts, as places in the pooled states.

    Attributes:
        memory: (edits,).
        queries: (queries,).
        own: (queries,) which edit each should meet, -1 for none.
    """

    memory: Tensor
    queries: Tensor
    own: Tensor


def _draw(examples: Examples, chance: torch.Generator) -> _Drawn:
    facts = len(examples)
    order = torch.randperm(facts, generator=chance)
    sizes = [size for size in (_SMALLEST, 128, 512, 2048) if size < facts] + [facts]
    held = sizes[int(torch.randint(len(sizes), (1,), generator=chance))]
    inside, absent = order[:held], order[held:]
    memory, _ = _one_of(examples.wordings, inside, chance)
    queries, owns = [], []
    for kind, most in _QUERIES.items():
        pool = absent if kind == "absent" else inside
        some = pool[torch.randperm(len(pool), generator=chance)[:most]]
        table = examples.wordings if kind == "absent" else getattr(examples, kind)
        places, there = _one_of(table, some, chance)
        own = torch.full((len(some),), -1)
        if kind == "wordings":
            among = torch.full((facts,), -1)
            among[inside] = torch.arange(held)
            own = among[some]
            there = there & (places != memory[own])  # the same wording needs no learning
        queries.append(places[there])
        owns.append(own[there])
    return _Drawn(memory=memory, queries=torch.cat(queries), own=torch.cat(owns))


def _one_of(table: Tensor, facts: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return one place of each fact's row, and which facts have any."""
    rows = table[facts]
    count = (rows >= 0).sum(1)
    chosen = (torch.rand(len(rows), generator=chance) * count).long()
    return rows[torch.arange(len(rows)), chosen], count > 0


def _loss(found: Tensor, drawn: _Drawn, sharp: Tensor, edge: Tensor) -> Tensor:
    """Return binary cross-entropy of every query with every edit, a mean over queries."""
    edits = len(drawn.memory)
    logits = sharp.exp() * (found[edits:] @ found[:edits].T - edge)  # (queries, edits)
    same = drawn.own[:, None] == torch.arange(edits)
    against = torch.where(same, 0.0, softplus(logits)).sum(1).mean()
    return against + softplus(-logits[same]).mean() if same.any() else against


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
) -> tuple[ScopeClassifier, Calibration]:
    """Return a classifier with threshold and temperature from a validation split, and how it does there.

    The threshold is the lowest that keeps enough of either kind of negative out; then the temperature is
    the one under which the decisions are likeliest. Edits that were trained on lie further from strangers than
    others do, so neighbours are kept out of the edits of ``examples`` alone, as many as it takes for so
    large a memory: to keep a share r out of n edits is to keep r^(m/n) out of m.

    Args:
        classifier: trained.
        examples: to validate on; every fact has an edit in the memory, under its own prompt.
        crowd: more facts, whose edits fill the memory up.
        rejects: share of neighbours to keep out.
        rejects_same_subject: share of other questions about the edited subjects to keep out.
    """
    memory = torch.cat([_edits(classifier, one) for one in (examples, crowd)])
    inside, right = _wordings(classifier, examples, memory)
    outside = {
        kind: _nearest(classifier, examples, kind, memory) for kind in ("neighbours", "others")
    }
    wanted = {"neighbours": rejects, "others": rejects_same_subject}
    edges = [float(near.quantile(wanted[kind])) for kind, near in outside.items() if near.numel()]
    strangers = _strangers(classifier, examples)
    if strangers.numel():
        edges.append(float(strangers.quantile(rejects ** (len(examples) / len(memory)))))
    threshold = max(edges, default=classifier.threshold)
    threshold = min(threshold, 1.0 - 1e-4)  # an edit's own prompt is in its scope
    temperature = _temperature(inside, torch.cat(list(outside.values())), threshold)
    auc = {kind: auc_of(inside, near) for kind, near in outside.items() if near.numel()}
    rejected = {
        kind: float((near < threshold).float().mean())
        for kind, near in outside.items()
        if near.numel()
    }
    accepted = float((right & (inside >= threshold)).float().mean()) if inside.numel() else 0.0
    found = Calibration(auc=auc, accepted=accepted, rejected=rejected, edits=len(memory))
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
    return classifier.embed(examples.pooled[examples.wordings[:, 0]])


def _wordings(
    classifier: ScopeClassifier, examples: Examples, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how near each other wording comes to the memory, and whether to its own edit."""
    table = examples.wordings[:, 1:]
    there = table >= 0
    own = torch.arange(len(table))[:, None].expand_as(table)[there]
    best, place = top_one(classifier.embed(examples.pooled[table[there]]), memory)
    return best, place == own


def _nearest(classifier: ScopeClassifier, examples: Examples, kind: str, memory: Tensor) -> Tensor:
    table: Tensor = getattr(examples, kind)
    return top_one(classifier.embed(examples.pooled[table[table >= 0]]), memory)[0]


def _strangers(classifier: ScopeClassifier, examples: Examples) -> Tensor:
    """Return how near neighbours come to the edits of these facts, and wordings to those of other facts."""
    memory = _edits(classifier, examples)
    if len(memory) < 2:
        return torch.empty(0)
    near = _nearest(classifier, examples, "neighbours", memory)
    table = examples.wordings
    found = [near]
    for own in range(len(table)):
        queries = classifier.embed(examples.pooled[table[own][table[own] >= 0]])
        others = torch.cat([memory[:own], memory[own + 1 :]])
        found.append(top_one(queries, others)[0])
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
