"""What ``kedit locate trace`` does."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core import EditRequest
from kedit_core.cli.opening import named_pieces, open_editor
from kedit_core.cli.screen import counted, print_json, screen
from kedit_core.errors import KeditError, did_you_mean
from kedit_core.plugins import Plugins
from kedit_locate.effects import STATES, Effects, Proposal, State, Trace, proposal
from kedit_locate.facts import GROUPS
from kedit_locate.tracing import Tracing, trace

_TITLES: dict[State, str] = {
    "hidden": "what the layer returns",
    "mlp": "what its MLP writes",
    "attention": "what its attention writes",
}


@frozen(kw_only=True)
class Opening:
    """How a model is opened.

    Attributes:
        model: what it is called.
        layout: pieces that are named by hand.
        dtype: of its weights.
        device: where it runs.
    """

    model: str
    layout: list[str] | None
    dtype: str | None
    device: str | None


@frozen(kw_only=True)
class TraceReport:
    """A trace, with what it says about editing.

    Attributes:
        model: as it was named.
        requests: as they were named.
        settings: how it was traced.
        trace: what was found.
        proposed: layers to edit, or None.
    """

    model: str
    requests: str
    settings: Tracing
    trace: Trace
    proposed: Proposal | None

    @property
    def title(self) -> str:
        """Return what was asked."""
        return f"Where does {self.model} keep the facts of {self.requests}?"


def states_named(text: str) -> tuple[State, ...]:
    """Return the kinds of state that an option names, joined by commas.

    Raises:
        KeditError: there is no such kind.
    """
    asked = [one.strip() for one in text.split(",")]
    for one in asked:
        if one not in STATES:
            hint = did_you_mean(one, STATES) or f"; {', '.join(STATES)} are"
            raise KeditError(f"--states: {one!r} is no kind of state{hint}")
    return tuple(state for state in STATES if state in asked)


def traced(
    plugins: Plugins,
    opening: Opening,
    source: str,
    requests: Sequence[EditRequest],
    settings: Tracing,
    states: Sequence[State],
    *,
    chat: bool,
) -> TraceReport:
    """Open a model, trace the facts, and return what was found."""
    pieces = named_pieces(opening.layout)
    editor = open_editor(plugins, opening.model, None, opening.dtype, opening.device, layout=pieces)
    found = editor.weights.layout
    about = (editor.model, editor.tokenizer, found, requests, settings, editor.progress)
    result = trace(*about, states=states, chat=chat)
    return TraceReport(
        model=Path(opening.model).name or opening.model,
        requests=Path(source).name or source,
        settings=settings,
        trace=result,
        proposed=proposal(result, found),
    )


def write_picture(report: TraceReport, path: Path) -> None:
    """Draw the heat map of a report."""
    from kedit_locate.heat_map import draw, save

    save(draw(report.trace, report.proposed, report.title), path)


def show_report(report: TraceReport, as_json: bool) -> None:
    """Print a table for each kind of state, and the proposal; or one JSON document."""
    if as_json:
        print_json(_document(report))
        return
    found = report.trace
    console = screen()
    for effects in found.effects:
        _show(effects, found.counts)
    left_out = f" ({found.unknown} left out: the model does not say target_true)"
    console.print(
        f"{counted(found.facts, 'fact')}{left_out if found.unknown else ''}; P(answer) is "
        f"{found.clean:.3f}, with the subject corrupted {found.corrupted:.3f}; figures say how much of it "
        "comes back",
        markup=False,
    )
    console.print(_advice(report), markup=False)


def _show(effects: Effects, counts: Sequence[int]) -> None:
    from rich.table import Table

    together = f", {effects.window} layers together" if effects.window > 1 else ""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=f"Restored: {_TITLES[effects.state]}{together}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("LAYER", justify="right")
    for group, count in zip(GROUPS, counts, strict=True):
        table.add_column(f"{group} ({count})", justify="right", min_width=7)
    best = effects.values.nan_to_num(nan=-1.0).max(1).values.tolist()  # (groups,)
    for layer, row in enumerate(effects.values.T.tolist()):
        cells = (
            f"[bold]{_figure(value)}[/bold]" if value == most > 0 else _figure(value)
            for value, most in zip(row, best, strict=True)
        )
        table.add_row(str(layer), *cells)
    screen().print(table)
    screen().print()


def _figure(value: float) -> str:
    """Return three decimals, "-" for what is no number, and no sign before a zero."""
    return "-" if isnan(value) else f"{value:z.3f}"


def _advice(report: TraceReport) -> str:
    found, proposed = report.trace, report.proposed
    if proposed is None:
        return "no layers are proposed: that takes MLPs that bring something back at a subject's last token"
    share = proposed.effect / max(found.clean - found.corrupted, 1e-9)
    return (
        f"proposed: --set layer={proposed.layer} for ROME, --set layers={list(proposed.layers)} for "
        f"methods that write into several (MEMIT, PMET); the MLP of layer {proposed.layer} brings "
        f"{share:.0%} back at the subject's last token"
    )


def _document(report: TraceReport) -> dict[str, Any]:
    found, proposed = report.trace, report.proposed
    return {
        "model": report.model,
        "requests": report.requests,
        "facts": found.facts,
        "unknown": found.unknown,
        "clean": found.clean,
        "corrupted": found.corrupted,
        "noise": found.deviation,
        "samples": report.settings.samples,
        "seed": report.settings.seed,
        "groups": dict(zip(GROUPS, found.counts, strict=True)),
        "effects": {
            one.state: {
                "window": one.window,
                "values": dict(zip(GROUPS, one.values.tolist(), strict=True)),
            }
            for one in found.effects
        },
        "proposal": proposed and {"layer": proposed.layer, "layers": list(proposed.layers)},
    }
