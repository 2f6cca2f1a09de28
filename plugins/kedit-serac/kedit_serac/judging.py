"""How well a classifier and a counterfactual model do, by the names under which the field logs it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core.requests import EditRequest
from kedit_core.scoring import score_answers
from kedit_core.tokens import Ids, encode
from kedit_memory.finders import Finder
from kedit_memory.kept import OUTSIDE
from kedit_memory.readers import reader_of
from kedit_memory.rerankers import Reranker
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_facts import Facts
from kedit_serac.bridged import Bridged
from kedit_serac.counterfactual import Counterfactual
from kedit_serac.lessons import astray
from kedit_serac.rows import Asked, Draws, Neighbour, Row, batch_of, neighbours_of, row_of

_ROWS = 64
_PARAPHRASES = 2


@frozen(kw_only=True)
class Exam:
    """What is asked at every validation, always the same.

    Attributes:
        edits: rows that ask for an edit in its own words and in others.
        copies: rows whose target is a random string of tokens.
        probes: prompts to leave alone, as the counterfactual model reads them.
        known: (probes,) whether the base answers each as it should.
        met: (probes,) the edit that each one meets, ``OUTSIDE`` for none.
        stored: rows of the edits that may be met.
    """

    edits: Sequence[Row] = field(repr=False)
    copies: Sequence[Row] = field(repr=False)
    probes: Sequence[Neighbour] = field(repr=False)
    known: Tensor = field(repr=False)
    met: Tensor = field(repr=False)
    stored: Sequence[Row] = field(repr=False)


def exam_of(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    asked: Sequence[Asked],
    classifier: ScopeClassifier,
    reranker: Reranker | None,
    *,
    most: int,
    chat: bool,
    tokens: Sequence[int],
    seed: int,
    reader: Any = None,
) -> Exam:
    """Return an exam on at most so many facts, seeded; what the base says of it is asked once, here.

    Args:
        model: the base.
        tokenizer: of the base.
        facts: to ask for.
        asked: the same, in tokens of the counterfactual model.
        classifier: finds which edit each prompt meets.
        reranker: decides among those that it finds; None lets the classifier decide.
        most: facts at the most.
        chat: render prompts through the chat template.
        tokens: of the counterfactual model, that random targets are drawn from.
        seed: of all draws.
        reader: its tokenizer, where it has one of its own.
    """
    chance = random.Random(f"exam {seed}")  # noqa: S311 - nothing secret
    places = chance.sample(range(len(asked)), min(most, len(asked)))
    some = [asked[place] for place in places]
    queries = range(1 + _PARAPHRASES)
    edits = [row_of(one, 0, q, 0) for one in some for q in queries if q < len(one.wordings)]
    chosen = [facts.facts[place].request for place in places]
    near = [
        probe for one in chosen for probe in chance.sample(one.locality, min(len(one.locality), 2))
    ]
    probes = neighbours_of(tokenizer, near, chat)
    answered = score_answers(model, [(one.prompt, one.answer) for one in probes])
    finder = finder_of(model, tokenizer, classifier, reranker, chosen, chat=chat)
    draws = Draws(random_targets=1.0, tokens=tokens, chance=chance)
    return Exam(
        edits=edits,
        copies=draws.rows(some, len(some)),
        probes=probes if reader is None else neighbours_of(reader, near, chat),
        known=torch.tensor([one.exact for one in answered]),
        met=finder.of([one.prompt for one in probes]).edit.cpu(),
        stored=[row_of(one, 0, 0, 0) for one in some],
    )


def finder_of(
    model: Any,
    tokenizer: Any,
    classifier: ScopeClassifier,
    reranker: Reranker | None,
    edits: Sequence[EditRequest],
    *,
    chat: bool,
) -> Finder:
    """Return what finds edits, with a memory of these alone.

    Args:
        model: the base.
        tokenizer: of the base.
        classifier: finds the nearest edits.
        reranker: decides among them; None lets the classifier decide.
        edits: of the memory.
        chat: render prompts through the chat template.
    """
    prompts = [one.ids for one in encode(tokenizer, [one.prompt for one in edits], chat)]
    reader = reader_of(model, tokenizer, classifier.source, model.device, classifier.lexicon)
    states = reader.states(prompts, alone=False)
    memory = classifier.embed_edits(states, classifier.named(edits)).to(model.device)
    return Finder(model, tokenizer, classifier, memory, reranker=reranker, prompts=prompts)


@torch.no_grad()
def judged(
    base: Any, model: Counterfactual | Bridged, exam: Exam, stop: Ids, suffix: str
) -> dict[str, float]:
    """Return the scores of an exam: accuracies by exact match, and losses.

    Args:
        base: the frozen model.
        model: that is trained.
        exam: to sit.
        stop: what ends an answer.
        suffix: of every name, ``train`` or ``val``.
    """
    loss, right = _said(base, model, exam.edits, stop)
    copied_loss, copied = _said(base, model, exam.copies, stop)
    scores = {
        "loss/edit": (loss + copied_loss) / 2,
        "edit/acc": float(right.float().mean()),
        "copy/acc": float(copied.float().mean()),
        **_left_alone(base, model, exam, stop),
    }
    return {f"{name}_{suffix}": value for name, value in scores.items()}


def _left_alone(
    base: Any, model: Counterfactual | Bridged, exam: Exam, stop: Ids
) -> Mapping[str, float]:
    """Return what happens to prompts that are none of the edits' business."""
    if not len(exam.known):
        return {}
    after = exam.known.clone()
    met = (exam.met != OUTSIDE).nonzero()[:, 0].tolist()
    loss = 0.0
    if met:
        stored = [exam.stored[int(exam.met[place])] for place in met]
        probes = [exam.probes[place] for place in met]
        rows = [
            Row(edit=row.edit, query=probe.prompt, answer=probe.answer)
            for row, probe in zip(stored, probes, strict=True)
        ]
        after[met] = _said(base, model, rows, stop)[1]
        lots = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
        moved = sum(float(astray(base, model, lot).sum()) for lot in lots)
        loss = moved / len(exam.probes)
    return {
        "loss/loc": loss,
        "acc/pre": float(exam.known.float().mean()),
        "acc/post": float(after.float().mean()),
    }


def _said(
    base: Any, model: Counterfactual | Bridged, rows: Sequence[Row], stop: Ids
) -> tuple[float, Tensor]:
    """Return the mean loss on targets, and of each row whether greedy decoding says the target."""
    losses, right = [], []
    for start in range(0, len(rows), _ROWS):
        batch = batch_of(rows[start : start + _ROWS], stop)
        hidden = model(base, batch.text)
        targets = batch.targets.to(hidden.device)
        logits = model.head(base, hidden[targets]).float().cpu()  # (target tokens, vocabulary)
        labels = batch.labels[batch.targets]
        losses.append(cross_entropy(logits, labels, reduction="none"))
        hits = torch.ones_like(batch.targets)
        hits[batch.targets] = logits.argmax(-1) == labels
        right.append(hits.all(1))
    return float(torch.cat(losses).mean()), torch.cat(right)
