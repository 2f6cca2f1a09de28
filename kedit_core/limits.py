"""Limits: what a stream of edits may cost, and what happens when it costs more."""

from attrs import frozen


@frozen(kw_only=True)
class Breach:
    """A limit that the model broke.

    Attributes:
        limit: its name: a field of ``Limits``, or ``finite``.
        allowed: the most, or of ``retention`` the least, that was allowed.
        found: what was measured.
        at: how many requests the stream had gone through.
        since: how many it had gone through when the model was last found good.
    """

    limit: str
    allowed: float
    found: float
    at: int
    since: int
