"""ROME's settings; no torch here."""

from typing import Literal

from attrs import field, frozen, validators

from kedit_locate.config import Context, Search, Statistics


@frozen(kw_only=True)
class RomeConfig:
    """Settings of ROME.

    Attributes:
        layer: whose MLP is edited; None takes one about a sixth of the way up.
        keys: ``both`` puts the fact at the mean key of all rows and at the subject's key where a text
            begins with it; ``mean`` at the mean key alone (R-ROME); ``bare`` is the original, which
            mixes the mean key's direction with the bare prompt's key and can explode.
        search: how the value is searched for.
        context: which texts stand before the prompt.
        statistics: which text the second moment of the keys is taken from.
        seed: of the sampled prefixes.
    """

    layer: int | None = field(default=None, validator=validators.optional(validators.ge(0)))
    keys: Literal["both", "mean", "bare"] = "both"
    search: Search = field(factory=Search)
    context: Context = field(factory=Context)
    statistics: Statistics = field(factory=Statistics)
    seed: int = 0
