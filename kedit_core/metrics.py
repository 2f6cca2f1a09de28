"""The metrics that core knows, each named ``<axis>.<protocol>``.

Axes: ``reliability`` (the edit's own prompt), ``generalization`` (its paraphrases), ``locality``
(what must not change) and ``portability`` (what should follow).

Protocols of every axis: ``exact`` (the first greedy tokens are the answer's, any alias),
``contains`` (the answer is in the greedy continuation), ``token`` (teacher-forced token accuracy,
counted as EasyEdit does), ``preference`` (NLL(new) < NLL(true), strictly; for locality the probe's
answer against the new target: CounterFact's ES, PS, NS) and ``probability`` (geometric mean token
probability, of the likeliest alias). Of locality also ``unchanged`` (argmax tokens as before) and
``kl`` (nats from the unedited model's distribution to this one's, mean over the answer's
positions).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, islice
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.deltas import Delta
from kedit_core.model_metrics import MODEL_METRICS, judge_model
from kedit_core.pairs import Pair, Pairs
from kedit_core.questions import AXES, Question, questions_of
from kedit_core.reports import Score
from kedit_core.requests import EditBatch
from kedit_core.scoring import (
    Answered,
    continue_greedily,
    ends_of_text,
    score_answers,
    up_to,
)

PROTOCOLS = ("exact", "contains", "token", "preference", "probability")
KNOWN = (
    *(f"{axis}.{protocol}" for axis in AXES for protocol in PROTOCOLS),
    "locality.unchanged",
    "locality.kl",
    *MODEL_METRICS,
)
DEFAULT = tuple(f"{axis}.exact" for axis in AXES)

_CONTAINS_TOKENS = 20
_COUNTED = ("token", "unchanged", "kl")


def judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    deltas: Sequence[Delta],
    baseline: Baseline,
    metrics: Mapping[str, Mapping[str, Any]],
) -> Iterator[Score]:
    """Yield the scores of the metrics that core knows.

    A request's score is the mean over its prompts on that axis; probes with a group are scored as
    ``<metric>:<group>`` too. The option ``known`` leaves out probes that the unedited model gets
    wrong.
    """
    pairs = Pairs(tokenizer, batch.chat)
    judge_on = _Judge(model, pairs, baseline, share=may_share(deltas))
    questions = {axis: list(questions_of(batch, axis)) for axis in AXES}
    asked: dict[str, list[Question]] = {}
    for metric, options in metrics.items():
        axis, _, protocol = metric.partition(".")
        if metric in KNOWN and axis in AXES:
            asked[metric] = judge_on.answerable(protocol, questions[axis])
            if options.get("known"):
                right = judge_on.before_exact(asked[metric])
                asked[metric] = list(compress(asked[metric], right))
    judge_on.read_ahead(asked)
    for metric, kept in asked.items():
        values = judge_on.values(metric.partition(".")[2], kept, metrics[metric]) if kept else []
        yield from _means(metric, kept, values)
    yield from judge_model(model, tokenizer, batch, deltas, baseline, metrics)


def may_share(deltas: Sequence[Delta]) -> bool:
    """Tell whether prompts that begin alike may be read up to there together, with these deltas in force.

    Weights answer as they read; a memory or a prompt looks at the whole question first.
    """
    return all(len(list(delta.weights())) == len(delta.parts) for delta in deltas)


def _means(metric: str, questions: Sequence[Question], values: Sequence[float]) -> Iterator[Score]:
    """Yield per request the mean of its values, over all its prompts and over each group of them."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for question, value in zip(questions, values, strict=True):
        found[metric, question.request].append(value)
        if question.group:
            found[f"{metric}:{question.group}", question.request].append(value)
    for (name, request), own in found.items():
        yield Score(metric=name, request=request, value=sum(own) / len(own))


class _Judge:
    """Asks a model, each thing once."""

    def __init__(
        self, model: PreTrainedModel, pairs: Pairs, baseline: Baseline, *, share: bool
    ) -> None:
        self._model, self._pairs, self._baseline, self._share = model, pairs, baseline, share
        self._scored: dict[Pair, Answered] = {}

    def answerable(self, protocol: str, asked: Sequence[Question]) -> list[Question]:
        """Return the questions that have what the protocol needs."""
        if protocol == "preference":
            return [question for question in asked if question.rival is not None]
        if protocol in _COUNTED:
            counted = self._pairs.counted(asked)
            return [one for one, pair in zip(asked, counted, strict=True) if pair.answer]
        return list(asked)

    def read_ahead(self, asked: Mapping[str, Sequence[Question]]) -> None:
        """Score what all metrics need at once: fuller batches, and each prompt is read once."""
        wanted: dict[tuple[Question, str], None] = {}
        counted: dict[Question, None] = {}
        for metric, questions in asked.items():
            protocol = metric.partition(".")[2]
            if protocol in {"exact", "probability"}:
                wanted |= dict.fromkeys(_every_answer(questions))
            elif protocol == "preference":
                wanted |= dict.fromkeys(_rivals(questions))
            elif protocol in {"token", "unchanged"}:
                counted |= dict.fromkeys(questions)
        self._now([*self._pairs.of(list(wanted)), *self._pairs.counted(list(counted))])

    def values(
        self, protocol: str, asked: list[Question], options: Mapping[str, Any]
    ) -> list[float]:
        """Return a value for each question."""
        protocols: dict[str, Callable[[list[Question], Mapping[str, Any]], list[float]]] = {
            "exact": self._exact,
            "contains": self._contains,
            "token": self._token,
            "preference": self._preference,
            "probability": self._probability,
            "unchanged": self._unchanged,
            "kl": self._kl,
        }
        return protocols[protocol](asked, options)

    def before_exact(self, asked: Sequence[Question]) -> list[bool]:
        """Tell which questions the unedited model gets right."""
        pairs = self._pairs.of(list(_every_answer(asked)))
        before = self._before(pairs)
        return [
            any(one.exact for one in own) for own in _apart(asked, [before[pair] for pair in pairs])
        ]

    def _answered(self, asked: Sequence[Question]) -> Iterator[Sequence[Answered]]:
        """Yield, for each question, how the model takes each of its answers."""
        pairs = self._pairs.of(list(_every_answer(asked)))
        now = self._now(pairs)
        return _apart(asked, [now[pair] for pair in pairs])

    def _exact(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        return [float(any(one.exact for one in own)) for own in self._answered(asked)]

    def _probability(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        return [
            max(float(one.log_probs.mean().exp()) for one in own) for own in self._answered(asked)
        ]

    def _preference(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = self._pairs.of(list(_rivals(asked)))
        now = self._now(pairs)
        taken = [now[pair].nll for pair in pairs]
        return [float(right < rival) for right, rival in zip(taken[::2], taken[1::2], strict=True)]

    def _token(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        """Count tokens as the peer does: the answer's tokens are those past the prompt's own count."""
        pairs = self._pairs.counted(asked)
        now = self._now(pairs)
        return [float(now[pair].hits.double().mean()) for pair in pairs]

    def _unchanged(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = self._pairs.counted(asked)
        before, now = self._before(pairs), self._now(pairs)
        return [float((now[pair].top == before[pair].top).double().mean()) for pair in pairs]

    def _kl(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = self._pairs.counted(asked)
        before = self._baseline.many(
            [("distribution", pair) for pair in pairs],
            lambda model, keys: self._score(model, [pair for _, pair in keys], distributions=True),
        )
        now = self._score(self._model, pairs, distributions=True)
        return [
            _divergence(before["distribution", pair], after)
            for pair, after in zip(pairs, now, strict=True)
        ]

    def _contains(self, asked: list[Question], options: Mapping[str, Any]) -> list[float]:
        tokens = int(options.get("tokens", _CONTAINS_TOKENS))
        said = continue_greedily(self._model, self._pairs.prompts(asked), tokens)
        tokenizer = self._pairs.tokenizer
        ends = ends_of_text(self._model, tokenizer)
        texts = [str(tokenizer.decode(up_to(ends, ids))) for ids in said]
        return [
            float(any(answer.strip() in text for answer in question.answers))
            for question, text in zip(asked, texts, strict=True)
        ]

    def _now(self, pairs: Sequence[Pair]) -> Mapping[Pair, Answered]:
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._scored]
        self._scored.update(zip(missing, self._score(self._model, missing), strict=True))
        return self._scored

    def _before(self, pairs: Sequence[Pair]) -> Mapping[Pair, Answered]:
        return self._baseline.many(pairs, self._score)

    def _score(
        self, model: torch.nn.Module, pairs: Sequence[Pair], *, distributions: bool = False
    ) -> list[Answered]:
        texts = [(pair.prompt, pair.answer) for pair in pairs]
        return score_answers(model, texts, distributions=distributions, share=self._share)


def _every_answer(asked: Sequence[Question]) -> Iterator[tuple[Question, str]]:
    """Yield each question with each of its answers."""
    return ((question, answer) for question in asked for answer in question.answers)


def _apart(asked: Sequence[Question], found: Iterable[Answered]) -> Iterator[Sequence[Answered]]:
    """Yield for each question its own of what was found for every answer."""
    rest = iter(found)
    return (list(islice(rest, len(question.answers))) for question in asked)


def _rivals(asked: Sequence[Question]) -> Iterator[tuple[Question, str]]:
    """Yield each question with its answer, then with what competes with it."""
    return ((one, text) for one in asked for text in (one.answers[0], one.rival or ""))


def _divergence(before: Answered, after: Answered) -> float:
    """Return KL(before ‖ after) in nats, mean over the answer's positions."""
    assert before.distribution is not None
    assert after.distribution is not None
    p, q = before.distribution.double(), after.distribution.double()  # (tokens, vocabulary)
    return float((p.exp() * (p - q)).sum(-1).mean())
