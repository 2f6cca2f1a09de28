"""A picture of a trace: groups of tokens by layers, one panel for each kind of state.

It needs matplotlib (``pip install "kedit-locate[plot]"``), which is imported where a picture is drawn.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from kedit_core.cli.screen import counted
from kedit_core.errors import KeditError
from kedit_core.files import check_writable, write_atomically
from kedit_locate.effects import Effects, Proposal, State, Trace
from kedit_locate.facts import GROUPS, SUBJECT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

KINDS = (".png", ".svg")
"""What a picture can be written as."""

_COLOURS = "GnBu"  # light to dark, to a colour-blind eye too
_INK, _PALE, _MARK = "#1f2933", "#616e7c", "#c2410c"
_BESIDE = 16  # panels of so many layers stand side by side, wider ones below each other
_CELL = 0.46  # inches
_SETTINGS: Any = {  # of any type: its own names every setting that matplotlib has
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.fonttype": "none",
    "svg.hashsalt": "kedit",
}
_NAMES: dict[State, str] = {"hidden": "Whole layer", "mlp": "MLP", "attention": "Attention"}


def check_picture(path: Path) -> None:
    """See that a picture can be written there, before anything is computed.

    Args:
        path: where it shall go.

    Raises:
        KeditError: matplotlib is missing, or the name is no picture's, or it cannot be written.
    """
    if path.suffix.lower() not in KINDS:
        raise KeditError(f"--out {path} is no picture: its name ends in neither .svg nor .png")
    if find_spec("matplotlib") is None:
        raise KeditError(
            'a picture needs matplotlib, which is not installed: pip install "kedit-locate[plot]"'
        )
    try:
        check_writable(path)
    except OSError as error:
        raise KeditError(f"--out {path} cannot be written ({error.strerror})") from None


def draw(trace: Trace, proposed: Proposal | None, title: str) -> "Figure":
    """Return the heat map of a trace; all panels have one scale.

    Args:
        trace: what was found.
        proposed: layers to frame, in the panel of the MLPs.
        title: what was asked.
    """
    from matplotlib.figure import Figure

    panels, layers = len(trace.effects), trace.effects[0].values.shape[1]
    down, across = (1, panels) if layers <= _BESIDE else (panels, 1)
    wide, high = max(layers, 5) * _CELL + 0.4, len(GROUPS) * _CELL + 0.8
    figure = Figure(figsize=(wide * across + 3.2, high * down + 1.0), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
    top = max(float(one.values.nan_to_num(nan=0.0).max()) for one in trace.effects) or 1.0
    for axis, effects in zip(axes, trace.effects, strict=True):
        mesh = _panel(axis, effects, top)
        if proposed is not None and effects.state == "mlp":
            _frame(axis, proposed)
    labels = [f"{name}  ({count})" for name, count in zip(GROUPS, trace.counts, strict=True)]
    axes[0].set_yticks([row + 0.5 for row in range(len(GROUPS))], labels)
    axes[0].set_ylim(len(GROUPS), 0)
    bar = figure.colorbar(mesh, ax=list(axes), fraction=0.04, pad=0.02)
    bar.set_label("P(answer) brought back", color=_INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=_INK, length=0)
    bar.outline.set_visible(False)
    figure.suptitle(title, color=_INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(_caption(trace, proposed), color=_PALE, fontsize=8.5, x=0.01, ha="left")
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a picture; the same picture gives the same file.

    Args:
        figure: to write.
        path: ending in .svg or .png.

    Raises:
        KeditError: it cannot be written.
    """
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    options: dict[str, Any] = {"format": kind, "dpi": 200, "facecolor": "white"}
    options |= {"metadata": {"Date": None}} if kind == "svg" else {}
    try:
        with matplotlib.rc_context(_SETTINGS):
            write_atomically(path, lambda target: figure.savefig(target, **options))
    except OSError as error:
        raise KeditError(f"{path} cannot be written ({error.strerror})") from None


def _panel(axis: "Axes", effects: Effects, top: float) -> "QuadMesh":
    layers = effects.values.shape[1]
    mesh = axis.pcolormesh(
        effects.values.numpy(), cmap=_COLOURS, vmin=0, vmax=top, edgecolors="white", linewidth=1.5
    )
    if layers <= _BESIDE:
        for (row, layer), value in numpy.ndenumerate(effects.values.numpy()):
            if abs(value) >= 0.005:  # the others would say .00
                ink = "white" if value > 0.55 * top else _INK
                said = f"{value:z.2f}".replace("0.", ".", 1).replace("-", "\N{MINUS SIGN}")
                axis.text(
                    layer + 0.5, row + 0.5, said, ha="center", va="center", fontsize=7.5, color=ink
                )
    together = f", {effects.window} layers together" if effects.window > 1 else ""
    axis.set_title(f"{_NAMES[effects.state]}{together}", fontsize=10, color=_INK, loc="left")
    axis.set_xlabel("layer", fontsize=9, color=_INK)
    shown = range(0, layers, 1 if layers <= _BESIDE else 5)
    axis.set_xticks([layer + 0.5 for layer in shown], [str(layer) for layer in shown])
    axis.tick_params(length=0, labelsize=9, colors=_INK, labelbottom=True)
    axis.spines[:].set_visible(False)
    return mesh


def _frame(axis: "Axes", proposed: Proposal) -> None:
    """Frame the proposed layers at the subject's last token."""
    from matplotlib.patches import Rectangle

    corner, wide = (proposed.layers[0], SUBJECT), len(proposed.layers)
    axis.add_patch(
        Rectangle(corner, wide, 1, fill=False, edgecolor=_MARK, linewidth=2, clip_on=False)
    )


def _caption(trace: Trace, proposed: Proposal | None) -> str:
    framed = "" if proposed is None or trace.of("mlp") is None else "; framed: proposed layers"
    return (
        f"{counted(trace.facts, 'fact')}; P(answer) is {trace.clean:.2f}, and {trace.corrupted:.2f} "
        f"with the subject's embeddings corrupted{framed}"
    )
