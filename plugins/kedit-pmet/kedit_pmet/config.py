"""PMET's settings; no torch here."""

from typing import Literal

from attrs import evolve, field, frozen, validators

from kedit_locate.config import (
    Context,
    Search,
    Statistics,
    ascending,
    probability,
    short_and_long,
    small_steps,
)


def _small_steps() -> Search:
    return evolve(small_steps(), lr=0.15, clamp=4.0)


@frozen(kw_only=True)
class PmetConfig:
    """Settings of PMET.

    The defaults make small steps and repeat them until an edit sticks. The original writes once:
    ``passes=1``, ``shrink=1``, ``keys="half"``, ``history="none"``, with ``search.direction="adam"`` and
    ``statistics.metric="moments"``. It also ends a search where the target is the likeliest token already;
    here the loss alone does.

    Attributes:
        layers: whose MLPs are edited, ascending; None takes some in the first third.
        penalty: λ, how much disturbance of other keys counts against the edits.
        shares: what a layer takes of what is missing at the topmost MLP, with n layers to go: ``root``
            1/√n, the original; ``linear`` 1/n, MEMIT's.
        history: ``exact`` keeps what earlier edits wrote at their keys; ``none`` is the original.
        until: an edit alone sticks when the model gives its target this probability a token.
        crowded: what ``until`` falls to as the keys of edits, earlier ones included, fill a layer: among
            many, margin costs other facts. Between the two the log-odds fall with the root of the
            share that is filled.
        passes: writes at most; from the second on only what does not stick is written again.
        shrink: where earlier edits are in force, an update is written at this share of its length: what edits
            reach falls with it, what they do to other facts with its square. 1 is the original; None takes
            1 where MLPs are gated (Llama) and 0.93 where they are not (GPT-2, GPT-J).
        keys: ``both`` writes a fact at the subject's key where a text begins with it and at the mean
            key behind the prefixes; ``half`` at half the bare prompt's key and half that mean, as the
            original.
        search: how the two shifts are searched for; clamp and decay are those of the MLP's, relative to
            what the MLP writes in the unedited model; ``stop`` counts where ``passes`` is 1. Otherwise a
            search ends where its edit would stick.
        attention_clamp: of the attention's shift, relative to what the attention writes; None is the
            same number.
        attention_decay: of the attention's shift; None is the same number.
        context: which texts stand before the prompt.
        statistics: which text the second moments of the keys are taken from.
        seed: of the sampled prefixes.
    """

    layers: tuple[int, ...] | None = field(default=None, validator=ascending)
    penalty: float = field(default=1000.0, validator=validators.ge(0.0))
    shares: Literal["root", "linear"] = "root"
    history: Literal["exact", "none"] = "exact"
    until: float = field(default=0.985, validator=probability)
    crowded: float = field(default=0.75, validator=probability)
    passes: int = field(default=8, validator=validators.ge(1))
    shrink: float | None = field(
        default=None,
        validator=validators.optional(validators.and_(validators.gt(0.0), validators.le(1.0))),
    )
    keys: Literal["both", "half"] = "both"
    search: Search = field(factory=_small_steps)
    attention_clamp: float | None = field(
        default=None, validator=validators.optional(validators.gt(0.0))
    )
    attention_decay: float | None = field(
        default=None, validator=validators.optional(validators.ge(0.0))
    )
    context: Context = field(factory=Context)
    statistics: Statistics = field(factory=short_and_long)
    seed: int = 0
