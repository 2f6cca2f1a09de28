"""Orders: one stream in several orders of its requests, as mean and spread."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean

from attrs import frozen

from kedit_core.plans import described
from kedit_core.run_records import CellRecord


@frozen(kw_only=True)
class Spread:
    """What several orders of one stream are worth at one point.

    Attributes:
        model: as the plan names it.
        label: of the method with its settings.
        schedule: in a few letters.
        at: after how many requests.
        interval: the T of a comparison over T.
        orders: how many of them got that far.
        mean: per metric the mean over orders of their means.
        deviation: per metric the standard deviation over orders (n - 1); 0 for a single one.
    """

    model: str
    label: str
    schedule: str
    at: int
    interval: int
    orders: int
    mean: Mapping[str, float]
    deviation: Mapping[str, float]


def over_orders(cells: Sequence[CellRecord]) -> list[Spread]:
    """Return mean and spread at every point, cells that differ in their seed alone taken together."""
    found: dict[tuple[str, str, str, int, int], list[Mapping[str, float]]] = defaultdict(list)
    for cell in cells:
        for one in cell.judgements:
            key = (cell.model, cell.label, described(cell.schedule), one.at, one.interval)
            found[key].append(one.report.means())
    return [
        Spread(
            model=model,
            label=label,
            schedule=schedule,
            at=at,
            interval=interval,
            orders=len(own),
            mean={name: mean(values) for name, values in _columns(own).items()},
            deviation={name: _deviation(values) for name, values in _columns(own).items()},
        )
        for (model, label, schedule, at, interval), own in found.items()
    ]


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1); NaN where a value is, which the standard library refuses."""
    middle = mean(values)
    squares = sum((value - middle) ** 2 for value in values)
    return sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row[name] for row in rows if name in row] for name in names}
