"""The editor: makes edits in one model, judges them, and takes every one of them out again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.cache import TensorCache
from kedit_core.computing import check_requests, finish
from kedit_core.config import Source, load_config, merged, read_mapping
from kedit_core.delta_files import load_deltas, save_deltas
from kedit_core.deltas import Delta
from kedit_core.errors import DeltaError, KeditError, NotInForceError
from kedit_core.interrupts import uninterrupted
from kedit_core.judging import Metrics, judged
from kedit_core.ownership import claim
from kedit_core.plugins import Plugins
from kedit_core.presets import preset_for, presets_of
from kedit_core.progress import Progress
from kedit_core.reports import Applied, EvalReport, Scope
from kedit_core.requests import EditBatch, EditRequest
from kedit_core.scoring import continue_greedily
from kedit_core.stack import Stack
from kedit_core.tokens import encode
from kedit_core.untouched import untouched
from kedit_core.weights import Weights


class Editor:
    """Owns a model, edits it in place, and can take out every edit again.

    Attributes:
        model: the model; parameter paths and state-dict keys never change.
        tokenizer: its tokenizer.
        method: name of the method that ``edit`` uses unless told otherwise.
        chat: prompts are rendered through the tokenizer's chat template, in editing and in judging.
        weights: originals and changes in force.
        baseline: what the unedited model says.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str | None = None,
        config: Any = None,
        *,
        chat: bool = False,
        plugins: Plugins | None = None,
        cache: TensorCache | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take charge of ``model``.

        Args:
            model: a decoder in Hugging Face format.
            tokenizer: the model's.
            method: for ``edit``; None when every call names one.
            config: of that method: a mapping, an instance of its config class, a TOML or JSON file,
                or None.
            chat: render prompts through the chat template.
            plugins: by default all installed ones.
            cache: by default in the user's cache folder.
            progress: by default silent.

        Raises:
            UnknownMethodError: no plugin offers the method.
            ConfigError: the configuration does not fit.
            ModelError: another editor owns the model.
        """
        self.model, self.tokenizer, self.method, self.chat = model, tokenizer, method, chat
        self._plugins = plugins if plugins is not None else Plugins.installed()
        self._config = config
        if method is not None:
            self._config_for(method, config)
        self._release = claim(model, self)
        self.weights = Weights(model)
        self.cache = cache if cache is not None else TensorCache()
        self.progress = progress if progress is not None else Progress()
        self.baseline = Baseline(model, self.original)
        self._stack = Stack(self._apply, self._replaces)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        method: str | None = None,
        config: Any = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        plugins: Plugins | None = None,
        **options: Any,
    ) -> Self:
        """Open a model and return its editor.

        Args:
            source: a hub id, a local folder, or a name that a plugin opens, such as ``atlas:gpt2``.
            method: as for the class.
            config: as for the class.
            dtype: to load in; None takes the checkpoint's own.
            device: to load on.
            plugins: by default all installed ones.
            options: ``chat``, ``cache`` and ``progress`` as for the class.

        Raises:
            ModelError: the source cannot be opened.
        """
        plugins = plugins if plugins is not None else Plugins.installed()
        model, tokenizer = plugins.call_all(
            "open_model", source=str(source), dtype=dtype, device=device
        )
        return cls(model, tokenizer, method, config, plugins=plugins, **options)

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """Return the deltas in force, oldest first."""
        return self._stack.in_force()

    def edit(
        self,
        requests: EditRequest | Sequence[EditRequest],
        method: str | None = None,
        config: Any = None,
    ) -> Delta:
        """Make the requests hold, and return what was changed.

        When anything goes wrong, Ctrl-C included, the model is bit for bit as before.

        Args:
            requests: one, or several for a method that takes batches.
            method: by default the editor's own.
            config: for this call; by default the editor's own.

        Raises:
            RequestError: a request lacks what the method needs, or is in force already.
            KeditError: several requests for a method that takes one at a time.
        """
        method = self._method(method)
        asked = (requests,) if isinstance(requests, EditRequest) else tuple(requests)
        info = self._plugins.info(method)
        check_requests(asked, info, self.deltas)
        settings = self._config_for(method, config)
        before = self._stack.history
        try:
            delta = self._compute(method, asked, settings)
            self._stack.settle((*before, delta))
        except BaseException:
            self._stack.settle(before)
            raise
        return delta

    def undo(self, id: str | None = None, *, recompute: bool = False) -> None:  # noqa: A002
        """Take an edit out, exactly.

        Later deltas of kind *weights* stay as they were computed. A memory goes back to its
        previous
        delta; asked for a superseded one, it drops the requests that came with it.

        Args:
            id: of a delta; None takes the newest out.
            recompute: replay the later edits on the model without this one.

        Raises:
            NotInForceError: there is none (a LookupError).
        """
        history = self._stack.history
        if not history:
            raise NotInForceError("there is no edit to undo", ())
        known = [delta.id for delta in history]
        if id is not None and id not in known:
            raise NotInForceError(f"no delta {id!r} to undo", known)
        place = len(history) - 1 if id is None else known.index(id)
        if recompute:
            self._replay(history[:place], [self._asked_by(delta) for delta in history[place + 1 :]])
        elif history[place] not in self.deltas:
            self.remove(*(request.id for request in self._asked_by(history[place])[1]))
        else:
            self._stack.settle((*history[:place], *history[place + 1 :]))

    def remove(self, *request_ids: str) -> None:
        """Take single requests out: re-solve the batches they came in, shrink the memories that hold them.

        Raises:
            NotInForceError: a request is not in force (a LookupError).
        """
        held = [request.id for delta in self.deltas for request in delta.requests]
        for name in request_ids:
            if name not in held:
                raise NotInForceError(f"no request {name!r} to remove", held)
        before = self._stack.history
        try:
            for delta in self.deltas:
                if any(request.id in request_ids for request in delta.requests):
                    self._remove_from(delta, request_ids)
        except BaseException:
            self._stack.settle(before)
            raise

    @contextmanager
    def original(self) -> Iterator[None]:
        """Show the unedited model inside the block, for comparing before and after."""
        with (
            self._stack.without(lambda delta: not self._writes(delta.method)),
            self.weights.original(),
        ):
            yield

    def evaluate(
        self, requests: EditRequest | Sequence[EditRequest], metrics: Metrics | None = None
    ) -> EvalReport:
        """Judge requests on the model as it is, in force or not.

        Args:
            requests: whole, probes included.
            metrics: names, or names with options; by default exact match on all four axes.

        Raises:
            ConfigError: nobody knows a metric.
        """
        asked = (requests,) if isinstance(requests, EditRequest) else tuple(requests)
        batch = EditBatch(requests=asked, step=len(self.deltas), chat=self.chat)
        with untouched(self.model):
            return judged(
                self._plugins,
                self.model,
                self.tokenizer,
                batch,
                self.deltas,
                self.baseline,
                metrics,
            )

    def scope(self, prompts: Sequence[str]) -> Scope:
        """Say which prompts fall in the scope of the newest delta whose method can tell.

        Raises:
            KeditError: no delta in force belongs to a method that classifies scope.
        """
        for delta in reversed(self.deltas):
            with untouched(self.model):
                found = self._plugins.call(
                    "scope_classify",
                    delta.method,
                    model=self.model,
                    tokenizer=self.tokenizer,
                    delta=delta,
                    prompts=prompts,
                )
            if isinstance(found, Scope):
                return found
        raise KeditError(
            "no delta in force says what is in its scope; edited weights answer every prompt"
        )

    def complete(self, prompts: Sequence[str], tokens: int = 12) -> list[str]:
        """Return how the model as it is goes on after each prompt, up to the end of its sentence.

        Args:
            prompts: as a user would type them.
            tokens: at the most, decoded greedily.
        """
        read = [found.ids for found in encode(self.tokenizer, prompts, self.chat)]
        with untouched(self.model):
            said = continue_greedily(self.model, read, tokens)
        special = set(self.tokenizer.all_special_ids)
        ends = (next((n for n, one in enumerate(ids) if one in special), tokens) for ids in said)
        texts = (
            self.tokenizer.decode(list(ids[:end])) for ids, end in zip(said, ends, strict=True)
        )
        return [_first_sentence(str(text)) for text in texts]

    def save(self, path: str | Path) -> None:
        """Write all deltas in force, oldest first, into one file.

        Raises:
            DeltaError: the file cannot be written.
        """
        save_deltas(self.deltas, path)

    def load(self, path: str | Path) -> tuple[Delta, ...]:
        """Put the deltas of a file into the model, on top of what is in force, and return them.

        Raises:
            DeltaError: the file is damaged, its deltas do not fit this model, or are in force
                already.
            UnknownMethodError: no plugin offers the method of one.
        """
        loaded = load_deltas(path)
        present = {delta.id for delta in self._stack.history}
        for delta in loaded:
            if delta.id in present:
                raise DeltaError(str(path), f"delta {delta.id} is in force already")
            present.add(delta.id)
            self._plugins.info(delta.method)
            self.weights.check(delta)
        self._stack.settle((*self._stack.history, *loaded))
        return loaded

    def close(self) -> None:
        """Let go of the model as it is now, so that another editor may own it."""
        self._release()

    def _method(self, name: str | None) -> str:
        if name is None and self.method is None:
            raise KeditError("no method was named; pass method= here or to the editor")
        return name or self.method or ""

    def _config_for(self, method: str, config: Any = None) -> Any:
        """Return a method's settings: its defaults, below them a preset for this model, below it the user's."""
        cls = self._plugins.info(method).config
        own: Source | Any = self._config if config is None and method == self.method else config
        if isinstance(own, cls):
            return own
        where = str(own) if isinstance(own, str | Path) else f"config of {method}"
        if isinstance(own, str | Path):
            own = read_mapping(Path(own))
        preset = preset_for(self.model, presets_of(self._plugins.module(method)))
        below = preset.config if preset else {}
        if own is None or isinstance(own, Mapping):
            own = merged(below, own or {})
        return load_config(cls, own, where=where)

    def _writes(self, method: str) -> bool:
        return self._plugins.info(method).kind == "weights"

    def _replaces(self, method: str) -> bool:
        return not self._writes(method)

    def _compute(
        self, method: str, requests: Sequence[EditRequest], config: Any, remove: Sequence[str] = ()
    ) -> Delta:
        """Return a new delta of ``method``; the model is as before, whatever happens."""
        own = [delta for delta in self.deltas if delta.method == method]
        stripped = tuple(request.without_probes() for request in requests)
        batch = EditBatch(requests=stripped, remove=remove, step=len(own), chat=self.chat)
        hides = self._replaces(method)
        with uninterrupted() as gate:
            with (
                self._stack.without(lambda delta: hides and delta.method == method),
                untouched(self.model),
                gate.open(),
            ):
                found = self._plugins.call(
                    "compute_delta",
                    method,
                    model=self.model,
                    tokenizer=self.tokenizer,
                    batch=batch,
                    config=config,
                    previous=own,
                    weights=self.weights,
                    cache=self.cache,
                    progress=self.progress,
                )
            memory = (
                [r for delta in own for r in delta.requests if r.id not in remove] if hides else []
            )
            package = next(row.package for row in self._plugins.rows() if row.name == method)
            after = tuple(delta.id for delta in self.deltas)
            return finish(
                found, method, (*memory, *stripped), config, self.chat, self.weights, after, package
            )

    def _apply(self, delta: Delta) -> Applied:
        cls = self._plugins.info(delta.method).config
        config: Any = load_config(cls, delta.provenance.config, where=f"delta {delta.id}")
        applied = self._plugins.call(
            "apply_delta",
            delta.method,
            model=self.model,
            tokenizer=self.tokenizer,
            delta=delta,
            config=config,
            weights=self.weights,
        )
        if not isinstance(applied, Applied):
            raise DeltaError(f"delta {delta.id}", f"method {delta.method!r} did not apply it")
        return applied

    def _asked_by(self, delta: Delta) -> tuple[str, tuple[EditRequest, ...], Any]:
        """Return method, requests and config of a delta; of a memory only the requests that came with it."""
        earlier: set[str] = set()
        if self._replaces(delta.method):
            own = [one for one in self._stack.history if one.method == delta.method]
            before = own[: own.index(delta)]
            earlier = {request.id for request in before[-1].requests} if before else set()
        new = tuple(request for request in delta.requests if request.id not in earlier)
        config: Any = load_config(self._plugins.info(delta.method).config, delta.provenance.config)
        return delta.method, new, config

    def _replay(
        self, start: Sequence[Delta], edits: Sequence[tuple[str, tuple[EditRequest, ...], Any]]
    ) -> None:
        """Go back to ``start`` and make ``edits`` again, one after the other; all or nothing."""
        before = self._stack.history
        try:
            self._stack.settle(start)
            for method, requests, config in edits:
                if requests:
                    delta = self._compute(method, requests, config)
                    self._stack.settle((*self._stack.history, delta))
        except BaseException:
            self._stack.settle(before)
            raise

    def _remove_from(self, delta: Delta, request_ids: Sequence[str]) -> None:
        """Put in the place of ``delta`` one without some of its requests."""
        history = self._stack.history
        place = history.index(delta)
        method, _, config = self._asked_by(delta)
        kept = tuple(request for request in delta.requests if request.id not in request_ids)
        if self._replaces(method):
            self._shrink(delta, kept, config)
            return
        new: tuple[Delta, ...] = ()
        if kept:
            self._stack.settle(history[:place])
            new = (self._compute(method, kept, config),)
        self._stack.settle((*history[:place], *new, *history[place + 1 :]))

    def _shrink(self, delta: Delta, kept: Sequence[EditRequest], config: Any) -> None:
        """Replace a memory by one that holds ``kept`` alone, and forget what it was while it held more."""
        method = delta.method
        dropped = tuple(request.id for request in delta.requests if request not in kept)
        own = [one for one in self._stack.history if one.method == method]
        if kept and not self._plugins.info(method).removes:
            batches = [self._asked_by(one) for one in own]
            edits = [
                (name, tuple(r for r in asked if r in kept), of) for name, asked, of in batches
            ]
            self._replay(tuple(one for one in self._stack.history if one not in own), edits)
            return
        stale = {one.id for one in own if any(request.id in dropped for request in one.requests)}
        smaller = (self._compute(method, (), config, remove=dropped),) if kept else ()
        self._stack.settle((*(o for o in self._stack.history if o.id not in stale), *smaller))


def _first_sentence(text: str) -> str:
    line = text.strip().partition("\n")[0]
    sentence, stop, _ = line.partition(". ")
    return (sentence + stop.strip()).strip()
