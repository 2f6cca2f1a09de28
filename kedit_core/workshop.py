"""The workshop: computes the deltas of one model, puts them in, and makes them again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from attrs import evolve
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.cache import TensorCache
from kedit_core.computing import Asked, check_fits, check_loaded, finish
from kedit_core.config import load_config, merged, read_mapping
from kedit_core.deltas import Delta
from kedit_core.errors import DeltaError, KeditError
from kedit_core.plugins import Plugins
from kedit_core.presets import preset_for, presets_of
from kedit_core.progress import Progress
from kedit_core.reports import Applied, Scope
from kedit_core.requests import EditBatch
from kedit_core.run_reading import deltas_at
from kedit_core.stack import Stack
from kedit_core.stacking import check_delta
from kedit_core.untouched import Attachment, attachments, untouched
from kedit_core.weights import Weights
from kedit_core.written import compare_written

log = logging.getLogger(__name__)

WARNINGS = "warnings"
"""Under this name a method notes sentences that its user should read; they are logged as warnings."""


class Workshop:
    """Calls the hooks of methods for one model.

    Attributes:
        stack: the deltas of the model.
    """

    def __init__(
        self,
        plugins: Plugins,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: Weights,
        cache: TensorCache,
        progress: Progress,
    ) -> None:
        """Work on ``model``, with the methods of ``plugins``."""
        self._plugins, self._model, self._tokenizer = plugins, model, tokenizer
        self._weights, self._cache, self._progress = weights, cache, progress
        self.stack = Stack(self._apply, self.replaces)
        self._attached: dict[str, set[Attachment]] = {}
        weights.memories_out = self._without_memories

    def config_for(self, method: str, source: Any) -> Any:
        """Return a method's settings: its defaults, over them a preset for this model, over it the user's.

        Args:
            method: its name.
            source: a mapping, a file, None, or an instance of the method's config class, taken as it is.
        """
        cls = self._plugins.info(method).config
        if isinstance(source, cls):
            return source
        where = str(source) if isinstance(source, str | Path) else f"config of {method}"
        if isinstance(source, str | Path):
            source = read_mapping(Path(source))
        preset = preset_for(self._model, presets_of(self._plugins.module(method)))
        if source is None or isinstance(source, Mapping):
            source = merged(preset.config if preset else {}, source or {})
        return load_config(cls, source, where=where)

    def writes(self, method: str) -> bool:
        """Tell whether the deltas of a method are of kind *weights*."""
        return self._plugins.kind_of(method) == "weights"

    def replaces(self, method: str) -> bool:
        """Tell whether a method's new delta holds all that its earlier one held."""
        return not self.writes(method)

    def removes(self, method: str) -> bool:
        """Tell whether a method drops edits from its memory by itself."""
        return self._plugins.info(method).removes

    def make(self, asked: Asked, keep: Callable[[Delta], None] | None) -> Delta:
        """Return a new delta that is in force; when anything goes wrong, the model is as before.

        Args:
            asked: what the method is asked for.
            keep: called with the delta before it goes into the model.
        """
        before = self.stack.history
        try:
            delta = self.compute(asked)
            check_delta(delta, self.stack.in_force(), self._plugins.kind_of)
            if keep is not None:
                keep(delta)
            self.stack.settle((*before, delta))
            return self._described(delta)
        except BaseException:
            self.stack.settle(before)
            raise

    def load(self, path: str | Path) -> tuple[Delta, ...]:
        """Put the deltas of a file or a run into the model, on top of what is in force, and return them."""
        loaded = deltas_at(path)
        check_loaded(str(path), loaded, self.stack, self._plugins.kind_of)
        self._check_fit(str(path), loaded)
        self.stack.settle((*self.stack.history, *loaded))
        compare_written(str(path), self.stack.in_force(), self._weights)
        return loaded

    def go_to(self, history: Sequence[Delta]) -> None:
        """Bring the model to a history; deltas that it did not make itself must fit it."""
        known = {delta.id for delta in self.stack.history}
        self._check_fit("a history", [delta for delta in history if delta.id not in known])
        self.stack.settle(history)

    def _check_fit(self, where: str, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            self._plugins.info(delta.method)
            check_fits(where, delta, self._weights)

    def compute(self, asked: Asked) -> Delta:
        """Return a new delta; the model is as before, whatever happens.

        A memory is computed without its own earlier one. Prompts of other methods are out of sight:
        an edit that is made again below one stays below it.
        """
        method = asked.method
        own = [delta for delta in self.stack.in_force() if delta.method == method]
        step = self._step_after(method, own)
        asked = evolve(asked, requests=[request.without_probes() for request in asked.requests])
        batch = EditBatch(
            requests=asked.requests,
            remove=asked.remove,
            step=step,
            chat=asked.chat,
            notes=asked.notes,
        )
        hides = self.replaces(method)
        prompts = {
            delta.id
            for delta in self.stack.in_force()
            if delta.method != method and self._plugins.kind_of(delta.method) == "prompt"
        }
        hidden = prompts | {delta.id for delta in own if hides}
        with (
            self.stack.without(lambda delta: delta.id in hidden),
            self._weights.unchanged(),
            self.lent(),
        ):
            found = self._plugins.call(
                "compute_delta",
                method,
                model=self._model,
                tokenizer=self._tokenizer,
                batch=batch,
                config=asked.config,
                previous=own,
                weights=self._weights,
                cache=self._cache,
                progress=self._progress,
            )
        memory = [r for delta in own for r in delta.requests if r.id not in asked.remove]
        package = next(row.package for row in self._plugins.rows() if row.name == method)
        after = tuple(delta.id for delta in self.stack.in_force() if delta.id not in prompts)
        made = finish(found, asked, memory if hides else (), self._weights, after, package, step)
        said = made.provenance.notes.get(WARNINGS)
        for text in said if isinstance(said, list) else ():
            log.warning("%s: %s", method, text)
        return made

    def _step_after(self, method: str, own: Sequence[Delta]) -> int:
        """Return how many batches of a method came before; a memory's own delta knows, as it holds them all."""
        if self.replaces(method):
            return own[-1].provenance.step + 1 if own else 0
        return len(own)

    def _described(self, delta: Delta) -> Delta:
        """Return a delta that was just put in, with the digests of what it left in the model.

        Raises:
            DeltaError: its own tensors are no longer what they were.
        """
        written = self._weights.written_digests(delta)
        described = evolve(delta, provenance=evolve(delta.provenance, written=written))
        if described.id != delta.id:  # an id is computed once for each value, this one anew
            raise DeltaError(
                f"delta {delta.id}", f"method {delta.method!r} changed it while applying it"
            )
        self.stack.describe(described)
        return described

    def lent(self) -> AbstractContextManager[None]:
        """Lend the model out: what a hook leaves in it is gone afterwards, and what deltas hung up stays."""
        return untouched(self._model, self._of_memories)

    def scope_of(self, prompts: Sequence[str]) -> Scope:
        """Ask the newest delta whose method can tell which prompts fall in its scope.

        Raises:
            KeditError: no delta in force belongs to such a method.
        """
        for delta in reversed(self.stack.in_force()):
            found = self._plugins.call(
                "scope_classify",
                delta.method,
                model=self._model,
                tokenizer=self._tokenizer,
                delta=delta,
                prompts=prompts,
            )
            if isinstance(found, Scope):
                return found
        raise KeditError(
            "no delta in force says what is in its scope; edited weights answer every prompt"
        )

    def _apply(self, delta: Delta) -> Applied:
        cls = self._plugins.info(delta.method).config
        config: Any = load_config(cls, delta.provenance.config, where=f"delta {delta.id}")
        before = attachments(self._model)
        applied = self._plugins.call(
            "apply_delta",
            delta.method,
            model=self._model,
            tokenizer=self._tokenizer,
            delta=delta,
            config=config,
            weights=self._weights,
        )
        if not isinstance(applied, Applied):
            raise DeltaError(f"delta {delta.id}", f"method {delta.method!r} did not apply it")
        self._attached[delta.id] = attachments(self._model).keys() - before
        return applied

    def _of_memories(self) -> set[Attachment]:
        """Return what the deltas in force hung on the model's modules."""
        held = {delta.id for delta in self.stack.in_force()}
        self._attached = {name: found for name, found in self._attached.items() if name in held}
        return set().union(*self._attached.values())

    def _without_memories(self) -> AbstractContextManager[None]:
        return self.stack.without(lambda delta: not self.writes(delta.method))

    def asked_by(self, delta: Delta) -> Asked:
        """Return what was asked when a delta was computed; of a memory only what came with it."""
        earlier: set[str] = set()
        if self.replaces(delta.method):
            own = [one for one in self.stack.history if one.method == delta.method]
            before = own[: [one.id for one in own].index(delta.id)]
            earlier = {request.id for request in before[-1].requests} if before else set()
        return Asked(
            method=delta.method,
            requests=[request for request in delta.requests if request.id not in earlier],
            config=load_config(self._plugins.info(delta.method).config, delta.provenance.config),
            chat=delta.provenance.chat,
            notes=delta.provenance.notes,
        )

    def replay(self, start: Sequence[Delta], edits: Sequence[Asked]) -> None:
        """Go back to ``start`` and make ``edits`` again, one after the other; all or nothing."""
        before = self.stack.history
        try:
            self.stack.settle(start)
            for asked in edits:
                if asked.requests:
                    self.stack.settle((*self.stack.history, self.compute(asked)))
        except BaseException:
            self.stack.settle(before)
            raise
