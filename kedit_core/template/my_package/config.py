"""The settings of my-method; no torch here."""

from attrs import field, frozen, validators


@frozen(kw_only=True)
class MyMethodConfig:
    """Settings of my-method.

    Attributes:
        layer: whose MLP is edited; None takes the one in the middle.
        steps: of the search, at the most.
        lr: of the search.
        stop: negative log-likelihood of the target at which the search ends.
        seed: of the random texts.
    """

    layer: int | None = field(default=None, validator=validators.optional(validators.ge(0)))
    steps: int = field(default=50, validator=validators.ge(1))
    lr: float = field(default=0.1, validator=validators.gt(0))
    stop: float = field(default=0.2, validator=validators.gt(0))
    seed: int = 0
