"""MEMIT's settings; no torch here."""

from typing import Literal

from attrs import field, frozen, validators

from kedit_locate.config import Context, Search, Statistics


def _ascending(_: object, __: object, layers: tuple[int, ...] | None) -> None:
    if layers is not None and (not layers or layers[0] < 0 or sorted(set(layers)) != list(layers)):
        raise ValueError(f"layers are counted up from 0, each once: {list(layers)}")


def _short_and_long() -> Statistics:
    return Statistics(length=256, short=16)


def _small_steps() -> Search:
    return Search(steps=20, lr=0.2, clamp=0.75, decay=0.1, stop=0.05)


@frozen(kw_only=True)
class MemitConfig:
    """Settings of MEMIT.

    The defaults make small steps and repeat them until an edit sticks. The original makes one large
    step: ``passes=1``, ``keys="half"``, ``history="none"`` and a larger clamp.

    Attributes:
        layers: whose MLPs are edited, ascending; None takes some in the first third.
        penalty: λ, how much disturbance of other keys counts against the edits.
        history: ``exact`` keeps what earlier edits wrote at their keys; ``none`` is the original.
        until: an edit sticks when the model gives its target this probability a token.
        passes: writes at most; from the second on only what does not stick is written again.
        keys: ``both`` writes a fact at the subject's key where a text begins with it and at the mean
            key behind the prefixes; ``half`` at half the bare prompt's key and half that mean, as the
            original.
        search: how values are searched for; its clamp is relative to the unedited model.
        context: which texts stand before the prompt.
        statistics: which text the second moments of the keys are taken from.
        seed: of the sampled prefixes.
    """

    layers: tuple[int, ...] | None = field(default=None, validator=_ascending)
    penalty: float = field(default=1000.0, validator=validators.ge(0.0))
    history: Literal["exact", "none"] = "exact"
    until: float = field(default=0.9, validator=[validators.ge(0.0), validators.le(1.0)])
    passes: int = field(default=5, validator=validators.ge(1))
    keys: Literal["both", "half"] = "both"
    search: Search = field(factory=_small_steps)
    context: Context = field(factory=Context)
    statistics: Statistics = field(factory=_short_and_long)
    seed: int = 0
