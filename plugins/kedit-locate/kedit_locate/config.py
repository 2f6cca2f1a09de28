"""Settings that locate-then-edit methods share; no torch here."""

from typing import Literal

from attrs import field, frozen, validators

_positive = validators.gt(0.0)
_not_negative = validators.ge(0.0)

probability = validators.and_(validators.ge(0.0), validators.le(1.0))
"""Validates that a setting is between 0 and 1."""


def ascending(_: object, __: object, layers: tuple[int, ...] | None) -> None:
    """Refuse layers that are no ascending numbers, as a validator of attrs; None is none chosen.

    Args:
        layers: their numbers, from 0.

    Raises:
        ValueError: there is none, or they are not in order.
    """
    if layers is not None and (not layers or layers[0] < 0 or sorted(set(layers)) != list(layers)):
        raise ValueError(f"layers are counted up from 0, each once: {list(layers)}")


@frozen(kw_only=True)
class Search:
    """How the value of a fact is searched for.

    Attributes:
        steps: forwards at most; there is one update less.
        direction: ``adam`` moves every coordinate about as far, as the original; ``gradient`` goes
            straight down the gradient, which comes to shorter shifts.
        lr: Adam's; straight steps are so long, in norms of the site's own activation.
        clamp: the shift stays within this many norms of the site's own activation.
        decay: weight of ‖δ‖ / ‖h₀‖².
        kl: weight of the divergence of what the model says of the subject alone.
        stop: an edit is done when its loss is below this.
    """

    steps: int = field(default=70, validator=validators.ge(1))
    direction: Literal["adam", "gradient"] = "adam"
    lr: float = field(default=0.25, validator=_positive)
    clamp: float = field(default=4.0, validator=_positive)
    decay: float = field(default=0.1, validator=_not_negative)
    kl: float = field(default=0.0625, validator=_not_negative)
    stop: float = field(default=0.08, validator=_not_negative)


@frozen(kw_only=True)
class Context:
    """Which sampled texts stand before the prompt, so that the edit does not hang on one context.

    Attributes:
        lengths: tokens of each kind of prefix, the start token included; at least 2.
        count: prefixes of each length.
        top_k: sampled from this many likeliest tokens.
    """

    lengths: tuple[int, ...] = field(
        default=(5, 10), validator=validators.deep_iterable(validators.ge(2))
    )
    count: int = field(default=5, validator=validators.ge(0))
    top_k: int = field(default=5, validator=validators.ge(1))


@frozen(kw_only=True)
class Statistics:
    """Which text the second moment of the keys is taken from.

    Attributes:
        metric: ``moments`` measures disturbance by the second moment C of the keys; ``leverage`` lets
            each key k count kᵀC⁻¹k times in it, so that rare keys, such as those of names, are
            disturbed no more than common ones; ``identity`` takes C = I.
        corpus: a text file; None lets the model sample its own text.
        tokens: how many; None for ``per_feature`` times the MLP's width.
        per_feature: see ``tokens``.
        length: tokens of one passage.
        short: half of the tokens come in passages of this length, which begin as prompts do; None takes
            none. Keys differ with their place in a text, and an update may disturb those that were never
            seen as it likes: prompts are short, other texts long.
    """

    metric: Literal["moments", "leverage", "identity"] = "moments"
    corpus: str | None = None
    tokens: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    per_feature: int = field(default=10, validator=validators.ge(1))
    length: int = field(default=64, validator=validators.ge(2))
    short: int | None = field(default=None, validator=validators.optional(validators.ge(2)))


def short_and_long() -> Statistics:
    """Return statistics for many edits: of prompts as well as long texts, of names as well as the rest."""
    return Statistics(metric="leverage", per_feature=40, length=256, short=16)


def small_steps() -> Search:
    """Return a search for values that are written in small steps: straight down, and not far."""
    return Search(steps=25, direction="gradient", lr=0.04, clamp=0.75, decay=0.1, stop=0.005)
