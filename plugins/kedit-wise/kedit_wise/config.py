"""WISE's settings; no torch here."""

from typing import Literal

from attrs import field, frozen, validators

from kedit_locate.config import (
    Context,
    Search,
    Statistics,
    probability,
    short_and_long,
    small_steps,
)

_layer = validators.optional(validators.ge(0))
_positive = validators.gt(0.0)
_not_negative = validators.ge(0.0)


def _above_zero(_: object, __: object, bound: float | None) -> None:
    if bound is not None and bound <= 0:
        raise ValueError(f"a bound of {bound} holds everything back; None sets none")


_share = validators.and_(validators.gt(0.0), validators.le(1.0))


@frozen(kw_only=True)
class ClosedForm:
    """How a shard is solved for; the settings are MEMIT's, for one layer.

    Attributes:
        layer: whose down-projection the memory stands beside; None takes one of the first third, where
            subjects are looked up.
        penalty: λ, how much disturbance of other keys counts against the edits.
        history: ``exact`` keeps what earlier edits of the shard wrote at their keys; ``none`` does not.
        until: an edit alone sticks when the side memory gives its target this probability a token.
        crowded: what ``until`` falls to as the keys of a shard fill the layer.
        passes: writes at most; from the second on only what does not stick is written again.
        keys: which keys stand for an edit, as MEMIT's ``keys``.
        search: how values are searched for.
        statistics: which text the second moments of the keys are taken from.
    """

    layer: int | None = field(default=None, validator=_layer)
    penalty: float = field(default=1000.0, validator=_not_negative)
    history: Literal["exact", "none"] = "exact"
    until: float = field(default=0.985, validator=probability)
    crowded: float = field(default=0.75, validator=probability)
    passes: int = field(default=8, validator=validators.ge(1))
    keys: Literal["both", "half"] = "both"
    search: Search = field(factory=small_steps)
    statistics: Statistics = field(factory=short_and_long)


@frozen(kw_only=True)
class Descent:
    """How a shard is trained; the defaults are the original's.

    Attributes:
        layer: whose down-projection the memory stands beside; None takes that two thirds down.
        steps: at most.
        optimiser: ``sgd`` is the original; ``adam`` moves every entry about as far.
        lr: of a step.
        decay: of the side weights, masked as the step is.
        clamp: an entry of the update stays within this; None for no bound.
        mask: share of the entries that a shard may change; 1 for all.
        masks: ``disjoint`` shards change no entry twice, until 1 / ``mask`` of them have shared the matrix
            out and the next begin anew; ``independent`` ones are drawn by themselves, as the original's.
        stop: training ends when its loss is below this and has settled.
        quiet: α, the distance that irrelevant texts stay within.
        loud: β, the distance that prompts in scope reach.
        margin: γ, by how much these lie above those.
        irrelevant: texts out of scope for each edit.
        replay: earlier edits of the shard, at the most, that train along with a batch.
    """

    layer: int | None = field(default=None, validator=_layer)
    steps: int = field(default=70, validator=validators.ge(1))
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float = field(default=1.0, validator=_positive)
    decay: float = field(default=1e-5, validator=_not_negative)
    clamp: float | None = field(default=1.0, validator=_above_zero)
    mask: float = field(default=0.2, validator=_share)
    masks: Literal["disjoint", "independent"] = "disjoint"
    stop: float = field(default=0.02, validator=_not_negative)
    quiet: float = field(default=5.0, validator=_not_negative)
    loud: float = field(default=20.0, validator=_not_negative)
    margin: float = field(default=10.0, validator=_not_negative)
    irrelevant: int = field(default=1, validator=validators.ge(1))
    replay: int = field(default=0, validator=validators.ge(0))


@frozen(kw_only=True)
class Shards:
    """How edits are shared out among shards, and what becomes of full ones.

    Attributes:
        size: edits of a shard; then the next one begins.
        merge: how full shards are made one: ``ties`` keeps the largest entries and elects their signs
            (Yadav et al., 2023, arXiv:2306.01708), ``linear`` adds them up; ``none`` keeps all.
        every: edits after which the shards that they filled are merged; a multiple of ``size``.
        into: ``retrieve`` keeps what was merged beside others merged before; ``one`` merges it into these.
        density: share of a shard's entries that ``ties`` keeps.
        weight: of a shard in the merge; in ``ties`` it weighs the vote on signs and the mean.
    """

    size: int = field(default=100, validator=validators.ge(1))
    merge: Literal["none", "ties", "linear"] = "none"
    every: int = field(default=1000, validator=validators.ge(1))
    into: Literal["retrieve", "one"] = "retrieve"
    density: float = field(default=0.53, validator=_share)
    weight: float = field(default=1.0, validator=_positive)

    def __attrs_post_init__(self) -> None:
        """Refuse merges that would cut a shard in two."""
        if self.merge != "none" and self.every % self.size:
            raise ValueError(f"every={self.every} is no multiple of size={self.size}")


@frozen(kw_only=True)
class Routes:
    """How a prompt finds its shard.

    Attributes:
        router: ``activations`` goes by what the side weights would change at its tokens; ``scope`` by a
            trained scope classifier, which knows edits by their prompts.
        checkpoint: with ``scope``: where that classifier is, a folder that ``kedit serac train`` filled for
            this model, a file that holds it, or a folder of such folders. A memory keeps its own. Best
            trained on prompts that are rendered as those of the edits, with a chat template or without.
        measure: ``match`` is the share of an edit's own move that a token makes, of the edit and the token
            with most; ``max`` the distance between main and side output at the token where they differ
            most; ``mean`` that of all tokens, as the original.
        threshold: ``calibrated`` lies between what the shard's own prompts reach and what irrelevant texts
            do; ``activation`` is ``ratio`` times the least of its edits' means, as the original.
        ratio: see ``threshold``.
        rejects: share of the irrelevant texts that calibrated thresholds keep out, all shards together.
        keeps: share of its own prompts that a calibrated threshold lets in, whatever texts do; of the others,
            those go first whose key such texts stir as they do themselves.
        choose: among the shards whose threshold is reached, the one that reaches its own most times over
            (``ratio``), or the one that reaches most (``most``), as the original.
        texts: a file with an irrelevant text a line; None lets the model write them.
        count: of these texts; more tell thresholds of more shards apart, and take more memory.
        tokens: of each.
    """

    router: Literal["activations", "scope"] = "activations"
    checkpoint: str | None = None
    measure: Literal["match", "max", "mean"] = "match"
    threshold: Literal["calibrated", "activation"] = "calibrated"
    ratio: float = field(default=0.88, validator=_positive)
    rejects: float = field(default=0.99, validator=probability)
    keeps: float = field(default=0.97, validator=probability)
    choose: Literal["ratio", "most"] = "ratio"
    texts: str | None = None
    count: int = field(default=1024, validator=validators.ge(1))
    tokens: int = field(default=16, validator=validators.ge(2))


@frozen(kw_only=True)
class WiseConfig:
    """Settings of WISE.

    By default the side memory is solved for, where subjects are looked up. The original trains it:
    ``writer="descent"`` with ``routes={measure="mean", threshold="activation", choose="most"}`` and
    ``shards={merge="ties"}``.

    Attributes:
        writer: ``closed-form`` solves for the values of all edits, ``descent`` trains the entries of a
            random mask (arXiv:2405.14768).
        closed_form: settings of the first.
        descent: settings of the second.
        shards: how edits are shared out.
        routes: how prompts find them.
        context: which texts stand before the prompt.
        seed: of masks, sampled texts and draws.
    """

    writer: Literal["closed-form", "descent"] = "closed-form"
    closed_form: ClosedForm = field(factory=ClosedForm)
    descent: Descent = field(factory=Descent)
    shards: Shards = field(factory=Shards)
    routes: Routes = field(factory=Routes)
    context: Context = field(factory=Context)
    seed: int = 0
