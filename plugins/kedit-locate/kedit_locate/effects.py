"""What causal tracing finds, and the layers that it proposes to edit."""

from typing import Literal

from attrs import field, frozen
from torch import Tensor

from kedit_core import ModelLayout
from kedit_locate.facts import SUBJECT
from kedit_locate.layers import layers_of

State = Literal["hidden", "mlp", "attention"]
STATES: tuple[State, ...] = ("hidden", "mlp", "attention")
"""What can be restored: what a layer returns, what its MLP writes, what its attention writes."""


@frozen(kw_only=True)
class Effects:
    """What restoring one kind of state brings back.

    Attributes:
        state: which kind.
        window: layers restored together.
        values: (groups, layers) average indirect effects, float64; not a number where no fact has
            such a token, or no layer in the window such a state.
    """

    state: State
    window: int
    values: Tensor = field(eq=False)


@frozen(kw_only=True)
class Trace:
    """What was found over many facts.

    Attributes:
        effects: one for each kind of state that was asked for and that the model has.
        counts: (groups,) facts that have such a token.
        facts: traced.
        unknown: requests left out, because the model does not say their answer.
        clean: average probability of the answer.
        corrupted: the same with the subject corrupted.
        deviation: the noise's standard deviation.
    """

    effects: tuple[Effects, ...]
    counts: tuple[int, ...]
    facts: int
    unknown: int
    clean: float
    corrupted: float
    deviation: float

    def of(self, state: State) -> Effects | None:
        """Return the effects of one kind of state; None when it was not traced."""
        return next((one for one in self.effects if one.state == state), None)


@frozen(kw_only=True)
class Proposal:
    """Layers that are worth editing.

    Attributes:
        layer: where restoring MLPs at the subject's last token brings back most.
        layers: it and some beside it, those that together bring back most.
        effect: at ``layer``.
    """

    layer: int
    layers: tuple[int, ...]
    effect: float


def proposal(trace: Trace, layout: ModelLayout) -> Proposal | None:
    """Return the layers to edit: as many as methods take by default, about the peak of the MLPs' effect.

    Args:
        trace: of the model.
        layout: of the model.

    Returns:
        None where MLPs were not traced, no fact has a last subject token apart from the prompt's last
        token, or restoring brings nothing back.
    """
    mlp = trace.of("mlp")
    effect = None if mlp is None else mlp.values[SUBJECT].nan_to_num(nan=-1.0)  # (layers,)
    if effect is None or float(effect.max()) <= 0:
        return None
    peak, wide = int(effect.argmax()), min(len(layers_of(layout, None)), len(effect))
    starts = range(max(peak - wide + 1, 0), min(peak, len(effect) - wide) + 1)
    start = max(starts, key=lambda start: float(effect[start : start + wide].sum()))
    layers = tuple(range(start, start + wide))
    return Proposal(layer=peak, layers=layers, effect=float(effect[peak]))
