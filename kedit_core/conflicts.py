"""Conflicts: requests that cannot all hold, found before the first edit."""

from typing import Literal

from attrs import frozen

Policy = Literal["error", "first", "last", "newest"]
Kind = Literal["duplicate", "contradiction", "reversal"]


@frozen(kw_only=True)
class Decision:
    """How one conflict was settled.

    Attributes:
        kind: ``duplicate`` (the same edit again), ``contradiction`` (another target for the same question) or
            ``reversal`` (the later asks for what the earlier one replaced).
        request: id of the later request.
        other: id of the earlier one, in force or asked for.
        kept: id of the one that holds in the end.
        why: the sentence that a person reads.
    """

    kind: Kind
    request: str
    other: str
    kept: str
    why: str
