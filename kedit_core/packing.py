"""Judgements, conflicts and limits as JSON for a journal, and back."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict

from kedit_core.config import load_config
from kedit_core.conflicts import Decision
from kedit_core.judgements import Judgement
from kedit_core.limits import Breach
from kedit_core.reports import EvalReport, Score


def packed_report(report: EvalReport, requests: Sequence[str]) -> str:
    """Return a report as JSON: per metric one value for each request, null where it has none.

    Args:
        report: whose scores are of ``requests``, or of the whole model.
        requests: ids of the requests that were judged, in order.
    """
    place = {name: n for n, name in enumerate(requests)}
    scores: dict[str, list[float | None]] = {}
    whole: dict[str, float] = {}
    for score in report.scores:
        if score.request is None:
            whole[score.metric] = score.value
        else:
            column = scores.setdefault(score.metric, [None] * len(requests))
            column[place[score.request]] = score.value
    return json.dumps(
        {
            "method": report.method,
            "step": report.step,
            "scores": scores,
            "whole": whole,
            "missing": report.missing,
            "seconds": report.seconds,
            "peak_memory": report.peak_memory,
        }
    )


def unpacked_report(text: str, requests: Sequence[str]) -> EvalReport:
    """Return the report that :func:`packed_report` packed."""
    found: dict[str, Any] = json.loads(text)
    scores = [
        Score(metric=metric, request=request, value=value)
        for metric, column in found["scores"].items()
        for request, value in zip(requests, column, strict=True)
        if value is not None
    ]
    whole = [Score(metric=metric, value=value) for metric, value in found["whole"].items()]
    return EvalReport(
        method=found["method"],
        step=found["step"],
        scores=(*scores, *whole),
        missing=found["missing"],
        seconds=found["seconds"],
        peak_memory=found["peak_memory"],
    )


def judgement_of(row: Any, requests: Sequence[str]) -> Judgement:
    """Return the judgement of a row; ``requests`` are the ids of all requests of its cell."""
    judged = requests[row["first"] : row["at"]]
    return Judgement(
        at=row["at"],
        interval=row["interval"],
        judged=judged,
        report=unpacked_report(row["report"], judged),
        breaches=unpacked_breaches(row["breaches"]),
    )


def packed(values: Sequence[Breach] | Sequence[Decision]) -> str:
    """Return breaches or decisions as JSON."""
    return json.dumps([asdict(value) for value in values])


def unpacked_breaches(text: str) -> tuple[Breach, ...]:
    """Return the breaches that :func:`packed` packed."""
    return tuple(Breach(**one) for one in _objects(text))


def unpacked_decisions(text: str | None) -> tuple[Decision, ...]:
    """Return the decisions that :func:`packed` packed."""
    return tuple(load_config(Decision, one, where="decision") for one in _objects(text or "[]"))


def _objects(text: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = json.loads(text)
    return found
