"""What a run came to, as a table and as a JSON document."""

from typing import Any

from attrs import asdict
from rich.table import Table

from kedit_core.cli.scores import HEADINGS, shown
from kedit_core.orders import Spread, over_orders
from kedit_core.run_records import RunRecord


def results(run: RunRecord) -> Table:
    """Return a table with a row for each stream and interval at its last point, orders taken together."""
    last: dict[tuple[str, str, str, int], Spread] = {}
    for one in over_orders(run.cells):
        last[one.model, one.label, one.schedule, one.interval] = one
    rows = list(last.values())
    known = [name for name in HEADINGS if any(name in row.mean for row in rows)]
    several = any(row.orders > 1 for row in rows)
    naming = {"MODEL": "model", "METHOD": "label", "SCHEDULE": "schedule"}
    naming = {
        heading: name
        for heading, name in naming.items()
        if name == "label" or len({getattr(row, name) for row in rows}) > 1
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in naming:
        table.add_column(heading, overflow="fold")
    for heading in ("T", "AFTER", *(["ORDERS"] if several else []), *(HEADINGS[n] for n in known)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        names = [str(getattr(row, name)) for name in naming.values()]
        orders = [str(row.orders)] if several else []
        scores = [_score(row, metric, several) for metric in known]
        table.add_row(*names, str(row.interval), str(row.at), *orders, *scores)
    return table


def _score(row: Spread, metric: str, several: bool) -> str:
    """Return a mean, with its standard deviation where there are several orders."""
    if not several or metric not in row.mean:
        return shown(metric, row.mean.get(metric))
    return f"{shown(metric, row.mean[metric])} ± {shown(metric, row.deviation[metric])}"


def document(run: RunRecord) -> dict[str, Any]:
    """Return what a run came to, for programs."""
    return {
        "run": str(run.folder),
        "plan": run.plan,
        "versions": run.versions,
        "machine": run.machine,
        "started": run.started,
        "streams": [
            {
                "name": cell.name,
                "model": cell.model,
                "method": cell.method,
                "label": cell.label,
                "config": cell.config,
                "schedule": asdict(cell.schedule),
                "seed": cell.seed,
                "requests": cell.requests,
                "edits": len(cell.edits),
                "in_force": sum(edit.in_force for edit in cell.edits),
                "seconds": sum(edit.seconds for edit in cell.edits),
                "before": cell.before.means() if cell.before else None,
                "judgements": [
                    {
                        "at": one.at,
                        "interval": one.interval,
                        "judged": len(one.judged),
                        "means": one.report.means(),
                        "missing": one.report.missing,
                        "breaches": [str(breach) for breach in one.breaches],
                    }
                    for one in cell.judgements
                ],
                "conflicts": [asdict(one) for one in cell.decisions],
                "stopped": cell.stopped,
                "finished": cell.finished,
            }
            for cell in run.cells
        ],
        "orders": [asdict(one) for one in over_orders(run.cells)],
    }
