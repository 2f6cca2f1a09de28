"""What comes back from applying and judging edits."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

from attrs import field, frozen

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Score:
    """One number: what ``metric`` says of one request, or of the whole model when ``request`` is None."""

    metric: str
    value: float
    request: str | None = None


@frozen(kw_only=True)
class EvalReport:
    """How the edits fare.

    Attributes:
        method: the method judged, or methods joined by ``+``.
        step: number of edits in force.
        scores: all single scores.
        missing: per metric, how many requests had no data for it.
        seconds: time the judgement took.
        peak_memory: bytes at the most, of the device or else of the process.
    """

    method: str
    step: int
    scores: tuple[Score, ...] = field(repr=lambda scores: f"<{len(scores)} scores>")
    missing: dict[str, int] = field(factory=dict)
    seconds: float = 0.0
    peak_memory: int = 0

    def means(self) -> dict[str, float]:
        """Return the mean of every metric over the requests that have it."""
        values: dict[str, list[float]] = defaultdict(list)
        for score in self.scores:
            values[score.metric].append(score.value)
        return {metric: sum(found) / len(found) for metric, found in values.items()}


def _as_tuple(values: Iterable[str | None]) -> tuple[str | None, ...]:
    return tuple(values)


@frozen(kw_only=True)
class Scope:
    """Which prompts an edit speaks to.

    Attributes:
        probability: (prompts,) in [0, 1].
        requests: per prompt the id of the request it meets, or None.
    """

    probability: "Tensor" = field(eq=False)
    requests: tuple[str | None, ...] = field(converter=_as_tuple)


class Applied:
    """A delta that is in a model; ``undo()`` takes it out, a second ``undo()`` does nothing.

    Usable in ``with``: the delta is taken out at the end of the block.
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo

    def undo(self) -> None:
        """Take the delta out, exactly. When this fails it can be asked again."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()
