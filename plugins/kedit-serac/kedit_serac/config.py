"""SERAC's settings, for editing and for training; no torch here."""

import math

from attrs import field, frozen, validators

_SHARE = (validators.gt(0.0), validators.lt(1.0))


def _share(instance: object, attribute: object, value: float) -> None:
    for check in _SHARE:
        check(instance, attribute, value)  # type: ignore[arg-type]


def _finite(instance: object, attribute: object, value: float) -> None:
    del instance, attribute
    if not math.isfinite(value):
        raise ValueError(f"a threshold is a finite number, not {value}")


@frozen(kw_only=True)
class SeracConfig:
    """Settings of SERAC.

    Attributes:
        checkpoint: folder that ``kedit serac train`` filled for this model, a file in it, or a folder of
            such folders, of which the one for this model is taken.
        threshold: score from which a prompt is in scope, with a re-ranker its logit; None takes the calibrated
            one.
        hand_back: once the answer was said, the model itself goes on from it; else the counterfactual
            model says all that follows.
    """

    checkpoint: str | None = None
    threshold: float | None = field(default=None, validator=validators.optional(_finite))
    hand_back: bool = True


@frozen(kw_only=True)
class RerankerTraining:
    """How a re-ranker is trained, which reads a prompt together with its nearest edits and decides.

    Attributes:
        candidates: edits that are read with a prompt, those with the largest scores.
        encoder: folder or hub id of a text encoder that reads the pairs, frozen; None for a small decoder on
            the embeddings of the base, which is trained.
        blocks: of that decoder.
        heads: of its attention; None takes one for every 64 of its width.
        steps: of AdamW.
        queries: of a step.
        negatives: candidates of each query that are read in a step beside the edit that it asks for.
        lr: at the most; it rises over the first twentieth and falls to nothing over the second half.
        garbled: share of the queries that ask for an edit which are made-up wordings (``garbles``).
        recall: share of the wordings that come near enough to some edit to be read.
    """

    candidates: int = field(default=8, validator=validators.ge(1))
    encoder: str | None = None
    blocks: int = field(default=2, validator=validators.ge(1))
    heads: int | None = None
    steps: int = field(default=800, validator=validators.ge(1))
    queries: int = field(default=24, validator=validators.ge(1))
    negatives: int = field(default=2, validator=validators.ge(1))
    lr: float = field(default=1e-3, validator=validators.gt(0))
    garbled: float = field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    recall: float = field(default=0.99, validator=_share)


@frozen(kw_only=True)
class ScopeTraining:
    """How the scope classifier is trained.

    Attributes:
        encoder: folder or hub id of a text encoder that reads the prompts; None for the model's own states.
        pooling: of the encoder's last hidden states: mean, first or last; None takes what the encoder says of
            itself, or else the mean.
        width: of its directions.
        steps: of Adam.
        lr: at the start; it falls to nothing over the second half.
        dropout: share of the pooled states that is hidden from it at each step.
        wordings: prompts at the most that ask for one fact, lent by its relation where it has fewer.
        others: other questions about the subject of each fact.
        garbles: made-up wordings of each fact, for prompts in words that no training met.
        words: width of the part that knows which words a prompt says and which name the edit's subject; 0
            leaves it out.
        rejects: share of the neighbours that the threshold keeps out of a memory as large as the training set.
        rejects_same_subject: share of other questions about their subjects that it keeps out.
        accepts: share of the other wordings of edits that it lets in, as far as that leaves enough out: the
            lower, the less is answered in words that no training met.
        reranker: how a re-ranker is trained; None for no re-ranker.
    """

    encoder: str | None = None
    pooling: str | None = field(
        default=None, validator=validators.optional(validators.in_(("mean", "first", "last")))
    )
    width: int = field(default=256, validator=validators.ge(1))
    steps: int = field(default=1200, validator=validators.ge(1))
    lr: float = field(default=1e-3, validator=validators.gt(0))
    dropout: float = field(default=0.05, validator=[validators.ge(0), validators.lt(1)])
    wordings: int = field(default=10, validator=validators.ge(2))
    others: int = field(default=6, validator=validators.ge(1))
    garbles: int = field(default=10, validator=validators.ge(0))
    words: int = field(default=1024, validator=validators.ge(0))
    rejects: float = field(default=0.995, validator=_share)
    rejects_same_subject: float = field(default=0.9, validator=_share)
    accepts: float = field(default=0.99, validator=_share)
    reranker: RerankerTraining | None = None


@frozen(kw_only=True)
class CounterfactualTraining:
    """How the counterfactual model is trained.

    Attributes:
        model: a small causal language model with a vocabulary of its own, to be trained for it: a hub id, a
            folder, or what a plugin opens; None makes one that shares embeddings and head of the base.
        blocks: of the model, between embeddings and head of the base.
        heads: of its attention; None takes one for every 64 of its width.
        steps: of AdamW on each shard, at the most.
        batch: rows of a step.
        accumulate: parts that a step's rows are read in, one after the other, each of like lengths.
        lr: at the most; it rises over the first twentieth and falls to nothing at the end.
        random_targets: share of rows whose target is a random string of tokens, so that it must be copied.
        garbled: share of rows whose query is one of ``scope.garbles`` made-up wordings, so that an answer
            follows words that it never read too.
        locality: weight of the KL divergence from the base where the stored edit is another fact's. It rises
            from nothing in the second quarter of the steps; 0 spares the time that it takes.
        validate: steps between two validations; each writes the last checkpoint.
        patience: validations without a better one, after which training stops.
        replay: share of rows from earlier shards.
    """

    model: str | None = None
    blocks: int = field(default=2, validator=validators.ge(1))
    heads: int | None = None
    steps: int = field(default=1200, validator=validators.ge(1))
    batch: int = field(default=32, validator=validators.ge(1))
    accumulate: int = field(default=1, validator=validators.ge(1))
    lr: float = field(default=1e-3, validator=validators.gt(0))
    random_targets: float = field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    garbled: float = field(default=0.3, validator=[validators.ge(0), validators.le(1)])
    locality: float = field(default=0.05, validator=validators.ge(0))
    validate: int = field(default=100, validator=validators.ge(1))
    patience: int = field(default=5, validator=validators.ge(1))
    replay: float = field(default=0.5, validator=_share)
