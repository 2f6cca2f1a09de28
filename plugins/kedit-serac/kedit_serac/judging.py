"""How well a classifier and a counterfactual model do, by the names under which the field logs it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn.functional import cross_entropy

from kedit_core.scoring import score_answers
from kedit_core.tokens import Ids, encode, encode_target
from kedit_memory.finders import Finder
from kedit_memory.kept import OUTSIDE
from kedit_memory.readers import reader_of
from kedit_memory.rerankers import Reranker
from kedit_memory.scope import ScopeClassifier
from kedit_memory.scope_facts import Facts
from kedit_serac.counterfactual import Counterfactual, head_of
from kedit_serac.lessons import distance
from kedit_serac.rows import Asked, Row, batch_of, drawn, row_of

_ROWS = 64
_PARAPHRASES = 2


@frozen(kw_only=True)
class Probe:
    """A prompt that edits must leave alone, and its answer."""

    prompt: Ids
    answer: Ids


@frozen(kw_only=True)
class Exam:
    """What is asked at every validation, always the same.

    Attributes:
        edits: rows that ask for an edit in its own words and in others.
        copies: rows whose target is a random string of tokens.
        probes: prompts to leave alone.
        known: (probes,) whether the base answers each as it should.
        met: (probes,) the edit that each one meets, ``OUTSIDE`` for none.
        stored: rows of the edits that may be met.
    """

    edits: Sequence[Row] = field(repr=False)
    copies: Sequence[Row] = field(repr=False)
    probes: Sequence[Probe] = field(repr=False)
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
    vocabulary: int,
    seed: int,
) -> Exam:
    """Return an exam on at most so many facts, seeded; what the base says of it is asked once, here."""
    chance = random.Random(f"exam {seed}")  # noqa: S311 - nothing secret
    places = chance.sample(range(len(asked)), min(most, len(asked)))
    some = [asked[place] for place in places]
    queries = range(1 + _PARAPHRASES)
    edits = [row_of(one, 0, q, 0) for one in some for q in queries if q < len(one.wordings)]
    probes = []
    for place in places:
        near = facts.facts[place].request.locality
        for probe in chance.sample(near, min(len(near), 2)):
            (prompt,) = encode(tokenizer, [probe.prompt], chat)
            answer = encode_target(tokenizer, prompt, f" {probe.answers[0]}")
            probes.append(Probe(prompt=prompt.ids, answer=answer))
    answered = score_answers(model, [(one.prompt, one.answer) for one in probes])
    reader = reader_of(model, tokenizer, classifier.source, model.device)
    stored = [one.wordings[0] for one in some]
    memory = classifier.embed(reader.states(stored, alone=False))
    beside = (model, tokenizer, classifier, memory.to(model.device))
    finder = Finder(*beside, reranker=reranker, prompts=stored)
    left = [one.prompt for one in probes]
    met = finder.of(left).edit.cpu() if left else torch.empty(0, dtype=torch.long)
    return Exam(
        edits=edits,
        copies=drawn(some, len(some), 1.0, vocabulary, chance),
        probes=probes,
        known=torch.tensor([one.exact for one in answered]),
        met=met,
        stored=[row_of(one, 0, 0, 0) for one in some],
    )


@torch.no_grad()
def judged(
    base: Any, model: Counterfactual, exam: Exam, stop: Ids, suffix: str
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


def _left_alone(base: Any, model: Counterfactual, exam: Exam, stop: Ids) -> Mapping[str, float]:
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
        moved = distance(base, model, stored, [one.prompt for one in probes])
        loss = float(moved.sum()) / len(exam.probes)
    return {
        "loss/loc": loss,
        "acc/pre": float(exam.known.float().mean()),
        "acc/post": float(after.float().mean()),
    }


def _said(base: Any, model: Counterfactual, rows: Sequence[Row], stop: Ids) -> tuple[float, Tensor]:
    """Return the mean loss on targets, and of each row whether greedy decoding says the target."""
    losses, right = [], []
    for start in range(0, len(rows), _ROWS):
        batch = batch_of(rows[start : start + _ROWS], stop)
        hidden = model(base, batch.text)
        targets = batch.targets.to(hidden.device)
        logits = head_of(base, hidden[targets]).float().cpu()  # (target tokens, vocabulary)
        labels = batch.labels[batch.targets]
        losses.append(cross_entropy(logits, labels, reduction="none"))
        hits = torch.ones_like(batch.targets)
        hits[batch.targets] = logits.argmax(-1) == labels
        right.append(hits.all(1))
    return float(torch.cat(losses).mean()), torch.cat(right)
