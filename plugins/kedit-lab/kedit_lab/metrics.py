"""The benchmarks' own metrics, each as its authors define it; ``metric_names`` says how.

Every metric is worked out of one table: how the model takes an answer after a prompt. What two metrics
ask for is scored once.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import harmonic_mean
from typing import Any

from attrs import frozen
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Delta, EditBatch, Score
from kedit_core.metrics import may_share
from kedit_core.pairs import Pair, Pairs
from kedit_core.questions import Question, questions_of
from kedit_core.scoring import Answered, score_answers
from kedit_lab.consistency import consistency
from kedit_lab.metric_options import check_options
from kedit_lab.probes import negations, reversals

_PREFERRED = ("reliability", "generalization", "locality")
_ZSRE = {
    "zsre.efficacy": "reliability",
    "zsre.paraphrase": "generalization",
    "zsre.specificity": "locality",
}


def judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    deltas: Sequence[Delta],
    metrics: Mapping[str, Mapping[str, Any]],
) -> Iterator[Score]:
    """Yield the scores of the lab's metrics that were asked for.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    check_options(metrics)
    table = _Table(model, Pairs(tokenizer, batch.chat), share=may_share(deltas))
    if "counterfact.score" in metrics:
        yield from _score(table, batch)
    for axis in _PREFERRED:
        if f"{axis}.magnitude" in metrics:
            asked = _with_rival(batch, axis)
            yield from _means(f"{axis}.magnitude", asked, _magnitudes(table, asked))
    for metric, axis in _ZSRE.items():
        if metric in metrics:
            asked = list(questions_of(batch, axis))
            yield from _means(metric, asked, _accuracies(table, asked))
    for metric, probes in (("negation", negations), ("reversal", reversals)):
        if metric in metrics:
            asked = list(probes(batch, metrics[metric].get("template")))
            said = [float(one.exact) for one in table.of((one, one.answers[0]) for one in asked)]
            yield from _means(
                metric, asked, [1 - one if metric == "negation" else one for one in said]
            )
    if "consistency" in metrics:
        yield from consistency(model, tokenizer, batch, metrics["consistency"])


@frozen(kw_only=True)
class _Rivalry:
    """How a model takes a question's answer, and what competes with it."""

    answer: Answered
    rival: Answered


class _Table:
    """How a model takes answers after prompts; each is scored once."""

    def __init__(self, model: PreTrainedModel, pairs: Pairs, *, share: bool) -> None:
        self._model, self._pairs, self._share = model, pairs, share
        self._found: dict[Pair, Answered] = {}

    def of(self, asked: Iterable[tuple[Question, str]]) -> list[Answered]:
        """Return how the model takes each answer to its question."""
        pairs = self._pairs.of(list(asked))
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._found]
        texts = [(pair.prompt, pair.answer) for pair in missing]
        scored = score_answers(self._model, texts, share=self._share)
        self._found.update(zip(missing, scored, strict=True))
        return [self._found[pair] for pair in pairs]

    def rivalries(self, asked: Sequence[Question]) -> list[_Rivalry]:
        """Return how the model takes each answer and its rival."""
        found = self.of((one, text) for one in asked for text in (one.answers[0], one.rival or ""))
        return [
            _Rivalry(answer=answer, rival=rival)
            for answer, rival in zip(found[::2], found[1::2], strict=True)
        ]


def _with_rival(batch: EditBatch, axis: str) -> list[Question]:
    return [question for question in questions_of(batch, axis) if question.rival is not None]


def _score(table: _Table, batch: EditBatch) -> Iterator[Score]:
    """Yield CounterFact's S, unless an axis has no data."""
    asked = {axis: _with_rival(batch, axis) for axis in _PREFERRED}
    table.rivalries([question for own in asked.values() for question in own])  # all at once
    successes = []
    for own in asked.values():
        values = [float(one.answer.nll < one.rival.nll) for one in table.rivalries(own)]
        means = [score.value for score in _means("", own, values) if not score.metric]
        if not means:
            return
        successes.append(sum(means) / len(means))
    yield Score(metric="counterfact.score", value=harmonic_mean(successes))


def _magnitudes(table: _Table, asked: Sequence[Question]) -> list[float]:
    def probability(one: Answered) -> float:
        return float(one.log_probs.mean().exp())

    return [probability(one.answer) - probability(one.rival) for one in table.rivalries(asked)]


def _accuracies(table: _Table, asked: Sequence[Question]) -> list[float]:
    return [
        float(one.hits.double().mean())
        for one in table.of((question, question.answers[0]) for question in asked)
    ]


def _means(metric: str, asked: Sequence[Question], values: Sequence[float]) -> Iterator[Score]:
    """Yield each request's mean, over all its questions and over each group of them."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for question, value in zip(asked, values, strict=True):
        found[metric, question.request].append(value)
        if question.group:
            found[f"{metric}:{question.group}", question.request].append(value)
    for (name, request), own in found.items():
        yield Score(metric=name, request=request, value=sum(own) / len(own))
