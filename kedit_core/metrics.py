"""The metrics that core knows, each named ``<axis>.<protocol>``.

Axes: ``reliability`` (the edit's own prompt), ``generalization`` (its paraphrases), ``locality``
(what must
not change) and ``portability`` (what should follow).

Protocols of every axis: ``exact`` (the first greedy tokens are the answer's, any alias),
``contains`` (the
answer is in the greedy continuation), ``token`` (teacher-forced token accuracy, counted as EasyEdit
does),
``preference`` (NLL(new) < NLL(true), strictly; for locality the probe's answer against the new
target: CounterFact's
ES, PS, NS) and ``probability`` (geometric mean token probability). Of locality also ``unchanged``
(argmax tokens as before)
and ``kl`` (nats from the unedited model's distribution to this one's, mean over the answer's
positions).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.deltas import Delta
from kedit_core.model_metrics import MODEL_METRICS, judge_model
from kedit_core.reports import Score
from kedit_core.requests import EditBatch, EditRequest, Probe, joiner_for
from kedit_core.scoring import Answered, Ids, continue_greedily, score_answers
from kedit_core.tokens import encode, encode_target

AXES = ("reliability", "generalization", "locality", "portability")
PROTOCOLS = ("exact", "contains", "token", "preference", "probability")
KNOWN = (
    *(f"{axis}.{protocol}" for axis in AXES for protocol in PROTOCOLS),
    "locality.unchanged",
    "locality.kl",
    *MODEL_METRICS,
)
DEFAULT = tuple(f"{axis}.exact" for axis in AXES)

_CONTAINS_TOKENS = 20


@frozen(kw_only=True)
class _Question:
    """One prompt that one request is judged by.

    Attributes:
        request: its id.
        prompt: full text.
        answers: the right answers; any counts.
        rival: what the answer is preferred to, or None.
        group: of the probe.
    """

    request: str
    prompt: str
    answers: tuple[str, ...]
    rival: str | None
    group: str = ""


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
    questions = {axis: list(_questions(batch, axis)) for axis in AXES}
    for metric, options in metrics.items():
        axis, _, protocol = metric.partition(".")
        if metric not in KNOWN or axis not in AXES:
            continue
        asked = questions[axis]
        if options.get("known"):
            asked = [
                q for q, right in zip(asked, judge_on.before_exact(asked), strict=True) if right
            ]
        asked, values = judge_on.values(protocol, asked, options)
        yield from _means(metric, asked, values)
    yield from judge_model(model, tokenizer, batch, deltas, baseline, metrics)


def _questions(batch: EditBatch, axis: str) -> Iterator[_Question]:
    for request in batch.requests:
        if axis == "reliability":
            yield _own(request, request.prompt)
        elif axis == "generalization":
            yield from (_own(request, text) for text in request.paraphrases)
        elif axis == "locality":
            yield from (_probed(request, probe, request.target_new) for probe in request.locality)
        else:
            yield from (_probed(request, probe, None) for probe in request.portability)


def _own(request: EditRequest, prompt: str) -> _Question:
    return _Question(
        request=request.id, prompt=prompt, answers=(request.target_new,), rival=request.target_true
    )


def _probed(request: EditRequest, probe: Probe, rival: str | None) -> _Question:
    return _Question(
        request=request.id,
        prompt=probe.prompt,
        answers=probe.answers,
        rival=rival,
        group=probe.group,
    )


def _means(metric: str, questions: Sequence[_Question], values: Sequence[float]) -> Iterator[Score]:
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

    def values(
        self, protocol: str, asked: Sequence[_Question], options: Mapping[str, Any]
    ) -> tuple[list[_Question], list[float]]:
        """Return the questions that have what the protocol needs, and a value for each."""
        if protocol == "preference":
            asked = [question for question in asked if question.rival is not None]
        protocols: dict[str, Callable[[list[_Question], Mapping[str, Any]], list[float]]] = {
            "exact": self._exact,
            "contains": self._contains,
            "token": self._token,
            "preference": self._preference,
            "probability": self._probability,
            "unchanged": self._unchanged,
            "kl": self._kl,
        }
        kept = list(asked)
        return kept, protocols[protocol](kept, options) if kept else []

    def before_exact(self, asked: Sequence[_Question]) -> list[bool]:
        """Tell which questions the unedited model gets right."""
        pairs = [self._pairs(question) for question in asked]
        before = self._before([pair for own in pairs for pair in own])
        return [any(before[pair].exact for pair in own) for own in pairs]

    def _exact(self, asked: list[_Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._pairs(question) for question in asked]
        now = self._now([pair for own in pairs for pair in own])
        return [float(any(now[pair].exact for pair in own)) for own in pairs]

    def _probability(self, asked: list[_Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._pairs(question) for question in asked]
        now = self._now([pair for own in pairs for pair in own])
        return [max(float(now[pair].log_probs.mean().exp()) for pair in own) for own in pairs]

    def _preference(self, asked: list[_Question], _: Mapping[str, Any]) -> list[float]:
        right = [self._pair(question.prompt, question.answers[0]) for question in asked]
        rival = [self._pair(question.prompt, question.rival or "") for question in asked]
        now = self._now([*right, *rival])
        return [float(now[a].nll < now[b].nll) for a, b in zip(right, rival, strict=True)]

    def _token(self, asked: list[_Question], _: Mapping[str, Any]) -> list[float]:
        """Count tokens as the peer does: the answer's tokens are those past the prompt's own count."""
        pairs = [self._counted_pair(question) for question in asked]
        now = self._now(pairs)
        return [float(now[pair].hits.float().mean()) for pair in pairs]

    def _unchanged(self, asked: list[_Question], _: Mapping[str, Any]) -> list[float]:
        pairs = [self._counted_pair(question) for question in asked]
        before, now = self._before(pairs), self._now(pairs)
        return [float((now[pair].top == before[pair].top).float().mean()) for pair in pairs]

    def _kl(self, asked: list[_Question], _: Mapping[str, Any]) -> list[float]:
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

    def _contains(self, asked: list[_Question], options: Mapping[str, Any]) -> list[float]:
        tokens = int(options.get("tokens", _CONTAINS_TOKENS))
        prompts = [
            encode(self._tokenizer, [question.prompt], self._chat)[0].ids for question in asked
        ]
        said = continue_greedily(self._model, prompts, tokens)
        texts = [str(self._tokenizer.decode(list(ids))) for ids in said]
        return [
            float(any(answer.strip() in text for answer in question.answers))
            for question, text in zip(asked, texts, strict=True)
        ]

    def _pairs(self, question: _Question) -> list[_Pair]:
        return [self._pair(question.prompt, answer) for answer in question.answers]

    def _pair(self, prompt: str, answer: str) -> _Pair:
        read = encode(self._tokenizer, [prompt], self._chat)[0]
        target = joiner_for(prompt, answer) + answer.lstrip()
        return _Pair(prompt=read.ids, answer=encode_target(self._tokenizer, read, target))

    def _counted_pair(self, question: _Question) -> _Pair:
        if self._chat:
            return self._pair(question.prompt, question.answers[0])
        text = question.prompt + joiner_for(question.prompt, question.answers[0])
        joint = tuple(self._tokenizer(text + question.answers[0].lstrip())["input_ids"])
        count = len(self._tokenizer(question.prompt)["input_ids"])
        return _Pair(prompt=joint[:count], answer=joint[count:])

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
