"""``kedit list-methods``: what is installed."""

from typing import Any

from kedit_core.cli.screen import print_json, screen
from kedit_core.plugins import PluginRow, Plugins


def show_methods(plugins: Plugins, *, as_json: bool) -> None:
    """Print the methods that are installed, and plugins that are broken.

    Args:
        plugins: what was found.
        as_json: one JSON document instead of a table.
    """
    rows = [row for row in plugins.rows() if row.info is not None or row.problem]
    if as_json:
        print_json([_described(row) for row in rows])
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("METHOD", "KIND", "BATCH", "STREAM", "SCOPE", "PACKAGE", "SUMMARY"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, _cells(row)), style="" if row.info else "red")
    screen().print(table)
    if not rows:
        screen().print("no method is installed; each is a package of its own")


def _cells(row: PluginRow) -> tuple[str, ...]:
    if row.info is None:
        return row.name, "broken", "", "", "", row.package, row.problem
    info = row.info
    flags = (info.batched, info.continual, "scope_classify" in row.hooks)
    return (
        row.name,
        info.kind,
        *("yes" if flag else "-" for flag in flags),
        row.package,
        info.summary,
    )


def _described(row: PluginRow) -> dict[str, Any]:
    info = row.info
    return {
        "method": row.name,
        "package": row.package,
        "kind": info.kind if info else None,
        "batched": info.batched if info else None,
        "continual": info.continual if info else None,
        "scope": "scope_classify" in row.hooks,
        "needs": sorted(info.needs) if info else [],
        "summary": info.summary if info else "",
        "problem": row.problem or None,
    }
