"""Limits: what a stream of edits may cost, and what happens when it costs more."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from attrs import Attribute, field, frozen

from kedit_core.errors import ConfigError, ModelError
from kedit_core.requests import EditRequest

if TYPE_CHECKING:
    from kedit_core.editor import Editor
    from kedit_core.reports import EvalReport

log = logging.getLogger(__name__)

Action = Literal["warn", "stop", "rollback"]

_WHERE = "limits"
_NEWEST = 4  # prompts that are looked at for values that are not finite
_EDGE = 1e-9  # what lies so close to a limit is on it: 1 - 0.7 is no more than 0.3

_SAYS = {
    "perplexity": "perplexity is {found} times the start, more than the {allowed} allowed",
    "locality": "{found} of what the model knew beside the edits is lost, more than the {allowed} allowed",
    "retention": "{found} of the edits still hold, less than the {allowed} asked for",
    "drift": "the edited weights have grown by {found} of their norm, more than the {allowed} allowed",
    "finite": "the model has values that are not finite ({found})",
}


@frozen(kw_only=True)
class Breach:
    """A limit that the model broke; as text, the sentence that a person reads.

    Attributes:
        limit: its name: a field of ``Limits``, or ``finite``.
        allowed: the most, or of ``retention`` the least, that was allowed; 0 of ``finite``.
        found: what was measured; of ``finite`` the value itself.
        at: how many requests the stream had gone through.
        since: how many it had gone through when the model was last found good.
    """

    limit: str
    allowed: float
    found: float
    at: int
    since: int

    def __str__(self) -> str:
        found, allowed = _told_apart(self.found, self.allowed)
        what = _SAYS[self.limit].format(found=found, allowed=allowed)
        good = f"after {self.since}" if self.since else "before the first of them"
        return f"after {_edits(self.at)} {what}; the model was last found good {good}"


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@frozen(kw_only=True)
class Limits:
    """What a stream of edits may cost; a limit of None is not looked at.

    Values that are not finite, in the weights or in what the model says, are never allowed.

    Attributes:
        perplexity: at most this multiple of the unedited model's perplexity on ``text``, 1 or more.
        text: path of a file of held-out text, for ``perplexity``.
        locality: at most this share in [0, 1] of the locality probes that the unedited model gets right
            may be lost, over all edits so far (``locality.exact``).
        retention: at least this share in [0, 1] of all edits so far still says its target
            (``reliability.exact``).
        drift: relative growth of the norms of edited weights at most (``drift``).
        every: looked at after every so many requests.
        action: on a breach ``"warn"`` and go on, ``"stop"``, or go back to the last state that was found
            good and stop (``"rollback"``).

    Raises:
        ConfigError: a limit is out of its range, or lacks its text.
    """

    text: str | None = field(default=None, converter=_path)
    perplexity: float | None = field(default=None)
    locality: float | None = field(default=None)
    retention: float | None = field(default=None)
    drift: float | None = field(default=None)
    every: int = field(default=100)
    action: Action = field(default="rollback")

    @text.validator
    def _is_a_path(self, _: "Attribute[Any]", value: Any) -> None:
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(_WHERE, [f"text must be the path of a file, not {value!r}"])

    @perplexity.validator
    def _is_a_multiple(self, _: "Attribute[Any]", value: Any) -> None:
        if value is None:
            if self.text is not None:
                raise ConfigError(
                    _WHERE,
                    ["text is what perplexity is measured on: give perplexity a limit too"],
                )
            return
        if not (_number(value) and value >= 1):
            raise ConfigError(
                _WHERE,
                [f"perplexity must be 1 or more, a multiple of the start, not {value!r}"],
            )
        if self.text is None:
            raise ConfigError(
                _WHERE, ["perplexity needs a held-out text: give text, the path of a file, too"]
            )

    @locality.validator
    @retention.validator
    def _is_a_share(self, attribute: "Attribute[Any]", value: Any) -> None:
        if value is not None and not (_number(value) and 0 <= value <= 1):
            raise ConfigError(
                _WHERE, [f"{attribute.name} must be a share from 0 to 1, not {value!r}"]
            )

    @drift.validator
    def _is_growth(self, _: "Attribute[Any]", value: Any) -> None:
        if value is not None and not (_number(value) and value >= 0):
            raise ConfigError(_WHERE, [f"drift must be a number from 0 on, not {value!r}"])

    @every.validator
    def _is_a_count(self, _: "Attribute[Any]", value: Any) -> None:
        if not (type(value) is int and value > 0):
            raise ConfigError(_WHERE, [f"every must be a whole number from 1 on, not {value!r}"])

    @action.validator
    def _is_known(self, _: "Attribute[Any]", value: Any) -> None:
        if value not in get_args(Action):
            known = ", ".join(map(repr, get_args(Action)))
            raise ConfigError(_WHERE, [f"action must be one of {known}, not {value!r}"])

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the metrics that these limits are judged by, with their options."""
        needed: dict[str, tuple[float | None, dict[str, Any]]] = {
            "reliability.exact": (self.retention, {}),
            "locality.exact": (self.locality, {"known": True}),
            "perplexity": (self.perplexity, {"text": self.text}),
            "drift": (self.drift, {}),
        }
        return {name: options for name, (limit, options) in needed.items() if limit is not None}


class Governor:
    """Holds an edited model against its limits."""

    def __init__(self, limits: Limits, editor: "Editor") -> None:
        """Judge the model of ``editor``.

        Raises:
            ConfigError: the text for the perplexity cannot be found.
        """
        self.limits, self._editor = limits, editor
        self._said_so = False
        if limits.text is not None and not Path(limits.text).is_file():
            raise ConfigError(_WHERE, [f"text: there is no file {limits.text}"])

    def check(self, requests: Sequence[EditRequest], *, at: int, since: int) -> tuple[Breach, ...]:
        """Return the limits that the model breaks as it is now, none when it is good.

        Where there are values that are not finite, that is the only breach: nothing else can be
        measured then.

        Args:
            requests: all edits so far that should hold, oldest first, probes included.
            at: how many requests the stream has gone through.
            since: how many it had gone through when the model was last found good.

        Raises:
            ModelError: the unedited model has no finite perplexity on the text.
            ConfigError: the text cannot be read.
        """
        broken = self._not_finite(requests[-_NEWEST:])
        found: dict[str, float] = {}
        if broken is None and self.limits.metrics:
            report = self._editor.evaluate(requests, self.limits.metrics)
            broken = _not_finite_in(report)
            found = {} if broken is not None else self._costs(report)
        if broken is not None:
            return (Breach(limit="finite", allowed=0.0, found=broken, at=at, since=since),)
        breaches = []
        for limit, value in found.items():
            allowed = float(getattr(self.limits, limit))
            over = allowed - value if limit == "retention" else value - allowed
            if over > _EDGE:
                breaches.append(
                    Breach(limit=limit, allowed=allowed, found=value, at=at, since=since)
                )
        return tuple(breaches)

    def _costs(self, report: "EvalReport") -> dict[str, float]:
        """Return what was measured by the name of its limit; what lacks its data is left out."""
        means, found = report.means(), {}
        if "perplexity" in means:
            found["perplexity"] = means["perplexity"] / self._perplexity_at_the_start()
        if "locality.exact" in means:
            found["locality"] = 1 - means["locality.exact"]
        elif self.limits.locality is not None and not self._said_so:
            self._said_so = True
            log.warning(
                "limit locality: no edit so far has a probe that the unedited model gets right; "
                "nothing can be measured"
            )
        if "reliability.exact" in means:
            found["retention"] = means["reliability.exact"]
        if "drift" in means:
            found["drift"] = means["drift"]
        return found

    def _perplexity_at_the_start(self) -> float:
        asked = {"perplexity": {"text": self.limits.text}}
        start = self._editor.baseline.value(
            (__name__, self.limits.text),
            lambda _: self._editor.evaluate((), asked).means()["perplexity"],
        )
        if not math.isfinite(start):
            raise ModelError(
                type(self._editor.model).__name__,
                f"its perplexity on {self.limits.text} is {start} before any edit; choose another text",
            )
        return start

    def _not_finite(self, newest: Sequence[EditRequest]) -> float | None:
        """Return a value that is not finite, of the edited weights or of what is said to the newest edits."""
        weights = self._editor.weights
        if not all(bool(weights.matrix(path).isfinite().all()) for path in weights.touched):
            return math.nan
        if not newest:
            return None
        # One logit that is no number makes all probabilities beside it so.
        return _not_finite_in(self._editor.evaluate(newest, ["reliability.probability"]))


def _not_finite_in(report: "EvalReport") -> float | None:
    return next((one.value for one in report.scores if not math.isfinite(one.value)), None)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _edits(count: int) -> str:
    return f"{count} edit{'s' if count != 1 else ''}"


def _told_apart(found: float, allowed: float) -> tuple[str, str]:
    """Return two numbers as text, with three digits or as many as it takes to tell them apart."""
    for digits in range(3, 17):
        texts = f"{found:.{digits}g}", f"{allowed:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts
