"""The editor: makes edits in one model, judges them, and takes every one of them out again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core.baseline import Baseline
from kedit_core.cache import TensorCache
from kedit_core.completions import completions
from kedit_core.computing import Asked, check_model, check_requests
from kedit_core.delta_files import save_deltas
from kedit_core.deltas import Delta
from kedit_core.errors import ConfigError, KeditError
from kedit_core.judging import Metrics, judged
from kedit_core.methods import MethodInfo
from kedit_core.ownership import claim
from kedit_core.plugins import Plugins
from kedit_core.progress import Progress
from kedit_core.reports import EvalReport, Scope
from kedit_core.requests import EditBatch, EditRequest
from kedit_core.schedule import Schedule
from kedit_core.streams import Stream
from kedit_core.undoing import remove, undo
from kedit_core.untouched import at_rest
from kedit_core.weights import Weights
from kedit_core.workshop import Workshop
from kedit_core.wrapped import inner_model


class Editor:
    """Owns a model, edits it in place, and can take out every edit again.

    Attributes:
        model: the model, or the one inside a compiled or PEFT model; paths and keys never change.
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
        allow_tied: bool = False,
        layout: Mapping[str, str] | None = None,
    ) -> None:
        """Take charge of ``model``.

        Args:
            model: a decoder in Hugging Face format.
            tokenizer: the model's.
            method: for ``edit``; None when every call names one.
            config: of that method: a mapping, an instance of its config class, a TOML or JSON file, or None.
            chat: render prompts through the chat template.
            plugins: by default all installed ones.
            cache: by default in the user's cache folder.
            progress: by default silent.
            allow_tied: let methods edit tied weights, which changes both of their uses.
            layout: paths of pieces that are named by hand, as ``layout_of`` takes them.

        Raises:
            UnknownMethodError: no plugin offers the method.
            ConfigError: the configuration does not fit.
            ModelError: another editor owns the model.
        """
        self.model = model = cast(PreTrainedModel, inner_model(model))
        self.tokenizer, self.method, self.chat = tokenizer, method, chat
        self._plugins = plugins if plugins is not None else Plugins.installed()
        self._config = config
        self.weights = Weights(model, allow_tied=allow_tied, layout=layout)
        self.cache = cache if cache is not None else TensorCache()
        self.progress = progress if progress is not None else Progress()
        self.baseline = Baseline(model, self.original)
        self._workshop = Workshop(
            self._plugins, model, tokenizer, self.weights, self.cache, self.progress
        )
        self._stack = self._workshop.stack
        if method is not None:
            self._config_for(method, config)
        elif config is not None:
            raise ConfigError("config", ["it belongs to no method; pass method= with it"])
        self._release = claim(model, self)

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
            plugins: as for the class.
            options: ``chat``, ``cache``, ``progress``, ``allow_tied`` and ``layout`` as for the class.

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

    @property
    def history(self) -> tuple[Delta, ...]:
        """Return all deltas made and not undone, oldest first, replaced memories among them."""
        return self._stack.history

    def info(self, method: str | None = None) -> MethodInfo:
        """Return the card of a method, by default of the editor's own."""
        return self._plugins.info(self._method(method))

    def edit(
        self,
        requests: EditRequest | Sequence[EditRequest],
        method: str | None = None,
        config: Any = None,
        *,
        keep: Callable[[Delta], None] | None = None,
    ) -> Delta:
        """Make the requests hold, and return what was changed.

        When anything goes wrong, Ctrl-C included, the model is bit for bit as before.

        Args:
            requests: one, or several for a method that takes batches.
            method: by default the editor's own.
            config: for this call; by default the editor's own.
            keep: called with the new delta before it goes into the model, to write it to a file, say; when
                it raises, nothing has changed.

        Raises:
            RequestError: a request lacks what the method needs, or is in force already.
            KeditError: several requests for a method that takes one at a time.
            StackingError: the method does not go on top of another one's edits.
        """
        method = self._method(method)
        asked = (requests,) if isinstance(requests, EditRequest) else tuple(requests)
        check_requests(asked, self.info(method), self.deltas, self._plugins.kind_of)
        settings = self._config_for(method, config)
        check_model(self.model, self.tokenizer, asked, chat=self.chat)
        given = Asked(method=method, requests=asked, config=settings, chat=self.chat)
        return self._workshop.make(given, keep)

    def undo(self, id: str | None = None, *, recompute: bool = False) -> None:  # noqa: A002
        """Take an edit out, exactly.

        Later deltas of kind *weights* stay as they were computed. A memory goes back to its
        previous delta; asked for a superseded one, it drops the requests that came with it.

        Args:
            id: of a delta; None takes the newest out.
            recompute: replay the later edits on the model without this one.

        Raises:
            NotInForceError: there is none (a LookupError).
        """
        undo(self._workshop, id, recompute=recompute)

    def remove(self, *request_ids: str) -> None:
        """Take single requests out: re-solve the batches they came in, shrink the memories that hold them.

        Raises:
            NotInForceError: a request is not in force (a LookupError).
        """
        remove(self._workshop, request_ids)

    def go_to(self, history: Sequence[Delta]) -> None:
        """Bring the model to a history: its own at an earlier time, or one that was kept elsewhere.

        When this fails the model is as before.

        Raises:
            DeltaError: a delta was made for another model.
            UnknownMethodError: no plugin offers the method of one.
        """
        self._workshop.go_to(history)

    def stream(
        self, requests: Sequence[EditRequest], schedule: Schedule | None = None, **options: Any
    ) -> Stream:
        """Return a stream of edits: iterate over it to make them and get the judgements as they come.

        Args:
            requests: whole, probes included, in the order in which they shall be made.
            schedule: how many at a time, when judged, on what; by default one by one, each judged.
            options: as for :class:`~kedit_core.streams.Stream`.

        Raises:
            ConflictError: requests contradict each other, or an edit in force.
            KeditError: a request cannot be made, or the schedule asks for what the method cannot do.
        """
        return Stream(self, requests, schedule or Schedule(), **options)

    @contextmanager
    def original(self) -> Iterator[None]:
        """Show the unedited model inside the block, for comparing before and after."""
        with self.weights.original():
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
        with self._workshop.lent():
            on = (self.model, self.tokenizer, batch, self.deltas, self.baseline)
            return judged(self._plugins, *on, metrics)

    def scope(self, prompts: Sequence[str]) -> Scope:
        """Say which prompts fall in the scope of the newest delta whose method can tell.

        Raises:
            KeditError: no delta in force belongs to a method that classifies scope.
        """
        with self._workshop.lent():
            return self._workshop.scope_of([prompts] if isinstance(prompts, str) else prompts)

    def complete(self, prompts: Sequence[str], tokens: int = 12) -> list[str]:
        """Return how the model as it is goes on after each prompt, up to the end of its sentence.

        Args:
            prompts: as a user would type them.
            tokens: at the most, decoded greedily.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        with at_rest(self.model):
            return completions(self.model, self.tokenizer, prompts, tokens, chat=self.chat)

    def save(self, path: str | Path) -> None:
        """Write all deltas in force, oldest first, into one file.

        Raises:
            DeltaError: the file cannot be written.
        """
        save_deltas(self.deltas, path)

    def load(self, path: str | Path) -> tuple[Delta, ...]:
        """Put the deltas of a file or run (``RUN``, ``RUN/CELL``) in, on top of others, and return them.

        Raises:
            DeltaError: it is damaged, or its deltas do not fit this model, or are in force already.
            JournalError: the run or a file of it cannot be read.
            UnknownMethodError: no plugin offers the method of one.
            StackingError: one does not go on top of what is in force by then.
        """
        return self._workshop.load(path)

    def close(self) -> None:
        """Let go of the model as it is now, so that another editor may own it; this one edits no more."""
        self._stack.closed = True
        self._release()

    def _method(self, name: str | None) -> str:
        if name is None and self.method is None:
            raise KeditError("no method was named; pass method= here or to the editor")
        return name or self.method or ""

    def _config_for(self, method: str, config: Any) -> Any:
        own = self._config if config is None and method == self.method else config
        return self._workshop.config_for(method, own)
