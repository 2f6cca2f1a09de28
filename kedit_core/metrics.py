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
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from attrs import field, frozen
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.deltas import Delta
from kedit_core.model_metrics import MODEL_METRICS, judge_model
from kedit_core.questions import AXES, Question, questions_of
from kedit_core.reports import Score
from kedit_core.requests import EditBatch
from kedit_core.scoring import (
    Answered,
    Ids,
    continue_greedily,
    ends_of_text,
    score_answers,
    up_to,
)
from kedit_core.tokens import encode, encode_target, ids_of

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
    judge_on = _Judge(model, tokenizer, batch.chat, baseline)
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


def _means(metric: str, questions: Sequence[Question], values: Sequence[float]) -> Iterator[Score]:
    """Yield per request the mean of its values, over all its prompts and over each group of them."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for question, value in zip(questions, values, strict=True):
        found[metric, question.request].append(value)
        if question.group:
            found[f"{metric}:{question.group}", question.request].append(value)
    for (name, request), own in found.items():
        yield Score(metric=name, request=request, value=sum(own) / len(own))


@frozen(kw_only=True)
class _Pair:
    """A prompt and an answer as ids."""

    prompt: Ids
    answer: Ids = field()


_Texts = tuple[str, str | None, str]  # prompt, joiner, answer


class _Judge:
    """Asks a model, each thing once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool,
        baseline: Baseline,
    ) -> None:
        self._model, self._tokenizer, self._chat, self._baseline = model, tokenizer, chat, baseline
        self._scored: dict[_Pair, Answered] = {}
        self._pairs_read: dict[_Texts, _Pair] = {}
        self._counted_read: dict[_Texts, _Pair] = {}

    def answerable(self, protocol: str, asked: Sequence[Question]) -> list[Question]:
        """Return the questions that have what the protocol needs."""
        if protocol == "preference":
            return [question for question in asked if question.rival is not None]
        if protocol in _COUNTED:
            return [question for question in asked if self._counted_pair(question).answer]
        return list(asked)

    def read_ahead(self, asked: Mapping[str, Sequence[Question]]) -> None:
        """Score what all metrics need at once: fuller batches, and each prompt is read once."""
        pairs: dict[_Pair, None] = {}
        for metric, questions in asked.items():
            protocol = metric.partition(".")[2]
            for question in questions:
                if protocol in {"exact", "probability"}:
                    pairs |= dict.fromkeys(self._pairs(question))
                elif protocol == "preference":
                    pairs |= dict.fromkeys(self._rivals(question))
                elif protocol in {"token", "unchanged"}:
                    pairs[self._counted_pair(question)] = None
        self._now(list(pairs))

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
        pairs = [self._pairs(question) for question in asked]
        before = self._before([pair for own in pairs for pair in own])
        return [any(before[pair].exact for pair in own) for own in pairs]

    def _exact(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._pairs(question) for question in asked]
        now = self._now([pair for own in pairs for pair in own])
        return [float(any(now[pair].exact for pair in own)) for own in pairs]

    def _probability(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._pairs(question) for question in asked]
        now = self._now([pair for own in pairs for pair in own])
        return [max(float(now[pair].log_probs.mean().exp()) for pair in own) for own in pairs]

    def _preference(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._rivals(question) for question in asked]
        now = self._now([pair for own in pairs for pair in own])
        return [float(now[right].nll < now[rival].nll) for right, rival in pairs]

    def _token(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        """Count tokens as the peer does: the answer's tokens are those past the prompt's own count."""
        pairs = [self._counted_pair(question) for question in asked]
        now = self._now(pairs)
        return [float(now[pair].hits.double().mean()) for pair in pairs]

    def _unchanged(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._counted_pair(question) for question in asked]
        before, now = self._before(pairs), self._now(pairs)
        return [float((now[pair].top == before[pair].top).double().mean()) for pair in pairs]

    def _kl(self, asked: list[Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._counted_pair(question) for question in asked]
        before = self._baseline.many(
            [("distribution", pair) for pair in pairs],
            lambda model, keys: _score(model, [pair for _, pair in keys], distributions=True),
        )
        now = _score(self._model, pairs, distributions=True)
        return [
            _divergence(before["distribution", pair], after)
            for pair, after in zip(pairs, now, strict=True)
        ]

    def _contains(self, asked: list[Question], options: Mapping[str, Any]) -> list[float]:
        tokens = int(options.get("tokens", _CONTAINS_TOKENS))
        prompts = [
            encode(self._tokenizer, [question.prompt], self._chat)[0].ids for question in asked
        ]
        said = continue_greedily(self._model, prompts, tokens)
        ends = ends_of_text(self._model, self._tokenizer)
        texts = [str(self._tokenizer.decode(up_to(ends, ids))) for ids in said]
        return [
            float(any(answer.strip() in text for answer in question.answers))
            for question, text in zip(asked, texts, strict=True)
        ]

    def _pairs(self, question: Question) -> list[_Pair]:
        return [self._pair(question, answer) for answer in question.answers]

    def _rivals(self, question: Question) -> tuple[_Pair, _Pair]:
        rival = question.rival or ""
        return self._pair(question, question.answers[0]), self._pair(question, rival)

    def _pair(self, question: Question, answer: str) -> _Pair:
        key = (question.prompt, question.joiner, answer)
        if key not in self._pairs_read:
            read = encode(self._tokenizer, [question.prompt], self._chat)[0]
            target = encode_target(self._tokenizer, read, question.joined(answer))
            self._pairs_read[key] = _Pair(prompt=read.ids, answer=target)
        return self._pairs_read[key]

    def _counted_pair(self, question: Question) -> _Pair:
        """Return prompt and first answer, cut where the prompt alone would end; it may leave no answer."""
        answer = question.answers[0]
        if self._chat:
            return self._pair(question, answer)
        key = (question.prompt, question.joiner, answer)
        if key not in self._counted_read:
            text = question.prompt + question.joined(answer)
            joint = ids_of(self._tokenizer, text)
            count = len(ids_of(self._tokenizer, question.prompt))
            self._counted_read[key] = _Pair(prompt=joint[:count], answer=joint[count:])
        return self._counted_read[key]

    def _now(self, pairs: Sequence[_Pair]) -> Mapping[_Pair, Answered]:
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._scored]
        self._scored.update(zip(missing, _score(self._model, missing), strict=True))
        return self._scored

    def _before(self, pairs: Sequence[_Pair]) -> Mapping[_Pair, Answered]:
        return self._baseline.many(pairs, _score)


def _score(
    model: torch.nn.Module, pairs: Sequence[_Pair], *, distributions: bool = False
) -> list[Answered]:
    texts = [(pair.prompt, pair.answer) for pair in pairs]
    return score_answers(model, texts, distributions=distributions) if texts else []


def _divergence(before: Answered, after: Answered) -> float:
    """Return KL(before ‖ after) in nats, mean over the answer's positions."""
    assert before.distribution is not None
    assert after.distribution is not None
    p, q = before.distribution.double(), after.distribution.double()  # (tokens, vocabulary)
    return float((p.exp() * (p - q)).sum(-1).mean())
