"""Which edit of a memory a prompt meets: who reads it, the classifier, and the re-ranker where there is one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kedit_core.tokens import Ids
from kedit_memory.passages import Passage
from kedit_memory.readers import prompts_of, reader_of
from kedit_memory.rerankers import Reranker, Reranking
from kedit_memory.routing import Routing
from kedit_memory.scope import Match, ScopeClassifier, Search


class Finder:
    """Finds the edit that a prompt meets, the same way in a forward pass and apart from one."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        classifier: ScopeClassifier,
        memory: Tensor,
        *,
        reranker: Reranker | None = None,
        prompts: Sequence[Ids] = (),
        search: Search | None = None,
    ) -> None:
        """Search a memory beside a model.

        Args:
            model: the frozen base, in ``eval`` mode.
            tokenizer: the base's.
            classifier: trained.
            memory: (edits, width) vectors of the edits.
            reranker: trained; None lets the classifier decide.
            prompts: of the edits, as token ids of the base; for the re-ranker.
            search: by default the classifier's own; where there is no re-ranker.

        Raises:
            KeditError: a text encoder that reads is not on this machine, or is another one.
        """
        self._classifier, self._memory = classifier.to(memory.device), memory
        self._reader = reader_of(
            model, tokenizer, classifier.source, memory.device, classifier.lexicon
        )
        self._search = search
        self._reranking = (
            None
            if reranker is None
            else Reranking(model, tokenizer, reranker, self._memory, prompts)
        )

    def watch(self, routing: Routing) -> list[Any]:
        """Hang up what notes states of prompts on the way of a pass, and return the handles."""
        return self._reader.watch(routing)

    def in_pass(self, passage: Passage) -> Match:
        """Return which edit each row of a pass that reads prompts meets."""
        states = self._reader.noted(passage)
        prompts = [] if self._reranking is None else prompts_of(passage)
        return self._match(states, prompts, alone=False)

    def of(self, prompts: Sequence[Ids]) -> Match:
        """Return which edit each prompt meets; each is read by itself.

        Args:
            prompts: token ids of the base.
        """
        if not prompts:
            return Match(probability=torch.zeros(0), edit=torch.zeros(0, dtype=torch.long))
        return self._match(self._reader.states(prompts, alone=True), prompts, alone=True)

    def _match(self, states: Tensor, prompts: Sequence[Ids], *, alone: bool) -> Match:
        queries = self._classifier.embed(states.to(self._memory.device))
        if self._reranking is None:
            return self._classifier.match(queries, self._memory, self._search)
        return self._reranking.match(queries, prompts, alone=alone)
