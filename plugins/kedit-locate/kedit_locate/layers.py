"""Which layers methods edit that write into several, and how much shorter beside earlier edits."""

from collections.abc import Sequence

from kedit_core.layout import ModelLayout

_FROM, _COUNT = 0.12, 0.18
"""Where the layers are, as shares of the depth: about those of GPT-J (3-8 of 28) and Llama (4-8 of 32).

In a model of six layers that is the first one alone. What lower layers write moves the keys of upper ones,
those of earlier edits too; where layers are few, that costs a stream more than sharing the work saves.
"""

_SHRINK = 0.93
"""Of MLPs without a gate. Names light up much the same of their features, so that edits meet; those of a gated
MLP are a product, and rarer. Found on one small model of each kind."""


def layers_of(layout: ModelLayout, chosen: Sequence[int] | None) -> tuple[int, ...]:
    """Return the layers to edit, ascending.

    Args:
        layout: of the model.
        chosen: those that were asked for; None takes some in the first third.
    """
    if chosen is not None:
        return tuple(chosen)
    depth = len(layout.layers)
    first = int(_FROM * depth)
    return tuple(range(first, first + max(int(_COUNT * depth), 1)))


def shrink_of(layout: ModelLayout, layers: Sequence[int], chosen: float | None) -> float:
    """Return what is left of an update's length where earlier edits are in force.

    Args:
        layout: of the model.
        layers: that are edited.
        chosen: what was asked for; None takes 1 where the MLPs of all these layers are gated, else less.
    """
    if chosen is not None:
        return chosen
    return 1.0 if all(layout.layer(layer).gated for layer in layers) else _SHRINK


def site_of(layout: ModelLayout, top: int) -> str:
    """Return the module whose output the values are for: the topmost edited block.

    Where a norm stands between the down-projection and the stream (post-norm families), what a layer
    adds to the block's output is not what its projection writes; there it is that projection.
    """
    return layout.layer(top).path if layout.additive else layout.down_of(top).path
