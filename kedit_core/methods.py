"""What a method says about itself."""

from collections.abc import Iterable
from typing import Literal, get_args

from attrs import field, frozen, has, validators

Kind = Literal["weights", "side-memory", "prompt"]
Need = Literal["statistics", "training", "gradients", "subject"]

API = 1
"""Version of the hook contract that this core speaks."""


def _needs(values: Iterable[Need]) -> frozenset[Need]:
    return frozenset(values)


@frozen(kw_only=True)
class NoConfig:
    """The configuration of a method that has nothing to set."""


@frozen(kw_only=True)
class MethodInfo:
    """What a method says about itself: its name, what it changes and what it needs.

    Attributes:
        name: the name of its entry point, as typed after ``--method``.
        summary: one line for ``kedit list-methods``.
        kind: what its deltas hold: changed ``weights``, a ``side-memory`` or a ``prompt``.
        batched: it takes several requests in one call.
        continual: it is made for long streams of edits.
        removes: it drops single edits from its memory itself (``EditBatch.remove``).
        needs: what must be there before it can edit.
        config: attrs class with a default for every field.
        paper: where the method was published.
        api: version of the hook contract that it was written for.
    """

    name: str = field(validator=validators.min_len(1))
    summary: str
    kind: Kind = field(validator=validators.in_(get_args(Kind)))
    batched: bool = False
    continual: bool = False
    removes: bool = False
    needs: frozenset[Need] = field(
        default=frozenset(),
        converter=_needs,
        validator=validators.deep_iterable(validators.in_(get_args(Need))),
    )
    config: type = field(default=NoConfig)
    paper: str = ""
    api: int = API

    @config.validator
    def _is_attrs_class(self, _: object, value: type) -> None:
        if not has(value):
            raise TypeError(f"config of method {self.name!r} is {value!r}, not an attrs class")
