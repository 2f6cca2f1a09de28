"""SERAC keeps edits in a memory and leaves the model alone (Mitchell et al., 2022, arXiv:2206.06520).

For each prompt a trained classifier finds the stored edit whose scope it is in, if any. There a small
counterfactual model answers, which reads the stored edit and then the prompt; everywhere else the model does:

    answer(x) = counterfactual(edit, x)  where  max over edits of score(edit, x) ≥ threshold,   else  model(x)

An edit is one more row of the memory: nothing is trained and nothing else is read again. What the delta holds
is the whole memory, the classifier and the counterfactual model, so it needs no checkpoint any more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import Applied, Delta, EditBatch, Scope, SideMemory, Weights, encode
from kedit_core.digests import digest
from kedit_core.errors import KeditError
from kedit_core.requests import EditRequest
from kedit_core.tokens import Ids, encode_target
from kedit_memory.finders import Finder
from kedit_memory.members import Members, members_of, memory_of, shared_of
from kedit_memory.passages import Passage
from kedit_memory.readers import reader_of
from kedit_memory.rerankers import reranker_from
from kedit_memory.routing import Routing
from kedit_memory.scope import ScopeClassifier, classifier_from, request_ids
from kedit_memory.scope_files import made_for
from kedit_serac.bridged import Bridged, Language
from kedit_serac.bridging import Bridge
from kedit_serac.checkpoints import loaded, read_for, shape_from
from kedit_serac.config import SeracConfig
from kedit_serac.kernels import scope_top1
from kedit_serac.telling import Told, Voice

_MODEL = "counterfactual."
_EMBEDDING, _RERANKER = "embedding", "reranker"


@frozen(kw_only=True)
class Trained:
    """What training left: tensors and settings that are the same whatever the memory holds.

    Attributes:
        tensors: of classifier and counterfactual model.
        settings: the rest, JSON values.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Any]

    @property
    def classifier(self) -> ScopeClassifier:
        """Return the scope classifier."""
        return classifier_from(self.tensors, self.settings["scope"], "the memory")

    def adjusted(self, threshold: float | None) -> "Trained":
        """Return the same with a threshold that was set by hand, if one was: of whatever decides."""
        if threshold is None:
            return self
        decides = _RERANKER if _RERANKER in self.settings else "scope"
        changed = {**self.settings[decides], "threshold": threshold}
        return evolve(self, settings={**self.settings, decides: changed})


def serac(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    config: SeracConfig,
    previous: Sequence[Delta],
    weights: Weights,
) -> Delta:
    """Return the memory of ``previous`` without what is to be removed and with the edits of ``batch``."""
    trained = _trained(weights, tokenizer, config, previous)
    if batch.chat and isinstance(shape_from(trained.settings["shape"]), Language):
        raise KeditError("a counterfactual model with its own vocabulary reads no chat template")
    held = Members(requests=(), rows={})
    if previous:
        held = members_of(previous[-1]).without(batch.remove)
    classifier, chat = trained.classifier, batch.chat
    if held.requests and _threshold(memory_of(previous[-1]).settings) != classifier.threshold:
        # What an edit lacks is measured by the threshold.
        held = _embedded(model, tokenizer, classifier, held.requests, chat=chat)
    if batch.requests:
        held = held.plus(_embedded(model, tokenizer, classifier, batch.requests, chat=chat))
    part = SideMemory(
        at="", tensors={**trained.tensors, **held.tensors()}, settings=trained.settings
    )
    return Delta(method="serac", requests=held.requests, parts=[part])


def _embedded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    classifier: ScopeClassifier,
    requests: Sequence[EditRequest],
    *,
    chat: bool,
) -> Members:
    """Return edits as the memory holds them; each is read alone and the same bits whatever it came with."""
    prompts = [one.ids for one in encode(tokenizer, _prompts(requests), chat)]
    reader = reader_of(model, tokenizer, classifier.source, model.device, classifier.lexicon)
    states = reader.states(prompts, alone=True)
    rows = [
        classifier.embed_edits(state[None], name[None])[0]  # (length,) each
        for state, name in zip(states, classifier.named(requests), strict=True)
    ]
    return Members(requests=requests, rows={_EMBEDDING: torch.stack(rows)})


def attach(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delta: Delta, config: SeracConfig
) -> Applied:
    """Let the memory answer where a prompt is in its scope."""
    return Answering(model, tokenizer, delta, config).attach()


def scope(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, delta: Delta, prompts: Sequence[str]
) -> Scope:
    """Return the probability that each prompt is in scope, and whose; a forward decides the same."""
    members = members_of(delta)
    if not prompts:
        return Scope(probability=torch.zeros(0), requests=())
    asked = [one.ids for one in encode(tokenizer, prompts, delta.provenance.chat)]
    match = _finder(model, tokenizer, delta).of(asked)
    return Scope(probability=match.probability.cpu(), requests=request_ids(match, members.ids))


def _finder(model: Any, tokenizer: Any, delta: Delta) -> Finder:
    """Return what finds the edits of a delta."""
    part, where = memory_of(delta), f"delta {delta.id}"
    reranker = reranker_from(part.tensors, part.settings.get(_RERANKER), where)
    prompts: list[Ids] = []
    if reranker is not None:  # else nobody reads them
        chat = delta.provenance.chat
        prompts = [one.ids for one in encode(tokenizer, _prompts(delta.requests), chat)]
    return Finder(
        model,
        tokenizer,
        classifier_from(part.tensors, part.settings["scope"], where),
        members_of(delta).rows[_EMBEDDING].to(model.get_output_embeddings().weight.device),
        reranker=reranker,
        prompts=prompts,
        search=scope_top1,
    )


class Answering:
    """A memory in force in a model."""

    def __init__(self, model: Any, tokenizer: Any, delta: Delta, config: SeracConfig) -> None:
        """Take everything out of ``delta`` that is needed to answer beside ``model``."""
        part, members = memory_of(delta), members_of(delta)
        weight = model.get_output_embeddings().weight
        weights = {
            name.removeprefix(_MODEL): one
            for name, one in part.tensors.items()
            if name.startswith(_MODEL)
        }
        self._model, self._hands_back = model, config.hand_back
        counterfactual = loaded(shape_from(part.settings["shape"]), weights).beside(weight)
        self._finder = _finder(model, tokenizer, delta)
        self._voice: Voice | Bridge
        if isinstance(counterfactual, Bridged):
            self._voice = Bridge(model, tokenizer, counterfactual, members.requests)
        else:
            texts = [_edit(tokenizer, one, delta.provenance.chat) for one in members.requests]
            self._voice = Voice(model, counterfactual, texts)
        self._routing = Routing(model)

    def attach(self) -> Applied:
        """Begin to answer."""
        return self._routing.attach(self._finder.watch(self._routing), self._answer)

    def _answer(self, passage: Passage, output: Any) -> Any:
        if passage.reads_a_prompt:
            match = self._finder.in_pass(passage)
            passage.settle(match.edit, match.probability)
        kept = passage.kept
        if kept is None or not kept.inside:
            return output
        if passage.whole:
            keeps = getattr(output, "past_key_values", None) is not None
            told = self._voice.begin(passage, kept, keeps=keeps, hands_back=self._hands_back)
        elif kept.beside is not None:
            told = self._voice.go_on(passage, kept, hands_back=self._hands_back)
        else:
            return output
        return _with_told(self._model, passage, output, told)


def _with_told(model: Any, passage: Passage, output: Any, told: Told) -> Any:
    """Return the output with other logits where the counterfactual model's count."""
    logits = output.logits.clone()
    rows = told.rows.to(logits.device)
    counts = told.counts.to(logits.device)[..., None]
    logits[rows] = torch.where(counts, told.logits.to(logits), logits[rows])
    output["logits"] = logits
    labels = passage.given.get("labels")
    if labels is not None:
        output["loss"] = model.loss_function(
            logits=logits, labels=labels, vocab_size=logits.shape[-1]
        )
    return output


def _trained(
    weights: Weights, tokenizer: Any, config: SeracConfig, previous: Sequence[Delta]
) -> Trained:
    """Return what training left: of the memory that is there, or else of the checkpoint.

    Raises:
        KeditError: there is neither, or the memory was made with another checkpoint.
    """
    if config.checkpoint is None and not previous:
        raise KeditError(
            "serac needs a trained scope classifier and counterfactual model; train them with "
            "kedit serac train PLAN.toml, then say --set checkpoint=FOLDER"
        )
    if previous and config.checkpoint in (None, previous[-1].provenance.config.get("checkpoint")):
        settings = dict(memory_of(previous[-1]).settings)
        trained = Trained(tensors=shared_of(previous[-1]), settings=settings)
        return trained.adjusted(config.threshold)
    checkpoint = read_for(Path(str(config.checkpoint)), made_for(weights, tokenizer))
    tensors = {
        **checkpoint.classifier.tensors(),
        **{_MODEL + name: one for name, one in checkpoint.weights.items()},
    }
    settings = {
        "scope": checkpoint.classifier.settings(),
        "shape": checkpoint.shape.as_json(),
    }
    if checkpoint.reranker is not None:
        tensors |= checkpoint.reranker.tensors()
        settings[_RERANKER] = checkpoint.reranker.settings()
    if previous and not _same(tensors, shared_of(previous[-1])):
        raise KeditError(
            f"the memory in force was made with another checkpoint than {config.checkpoint}; undo it, or "
            "make these edits with the same one"
        )
    return Trained(tensors=tensors, settings=settings).adjusted(config.threshold)


def _threshold(settings: Mapping[str, Any]) -> float:
    return float(settings["scope"]["threshold"])


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    found, wanted = ({name: digest(one) for name, one in all_.items()} for all_ in (some, others))
    return found == wanted


def _prompts(requests: Sequence[EditRequest]) -> list[str]:
    return [request.prompt for request in requests]


def _edit(tokenizer: Any, request: EditRequest, chat: bool) -> tuple[Ids, Ids]:
    """Return the token ids of an edit's prompt and of its target."""
    (prompt,) = encode(tokenizer, [request.prompt], chat)
    return prompt.ids, encode_target(tokenizer, prompt, request.joiner + request.target_new)
