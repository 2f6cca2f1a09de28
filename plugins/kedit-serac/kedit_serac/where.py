"""Where a training is, so that it can go on from there."""

from attrs import frozen


@frozen(kw_only=True)
class Where:
    """How far training is.

    Attributes:
        shard: that is learned, from 0.
        step: steps made on it.
        best: the lowest validation loss on it.
        stale: validations since then.
        ended: no step is left on it.
    """

    shard: int = 0
    step: int = 0
    best: float = float("inf")
    stale: int = 0
    ended: bool = False
