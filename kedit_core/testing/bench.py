"""A method under test on a model that knows facts."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from transformers import PreTrainedModel

from kedit_core.cache import TensorCache
from kedit_core.config import load_config
from kedit_core.deltas import Delta
from kedit_core.digests import digest
from kedit_core.editor import Editor
from kedit_core.methods import MethodInfo
from kedit_core.plugins import PluginRow, Plugins
from kedit_core.progress import Progress
from kedit_core.reports import Applied, Scope
from kedit_core.requests import EditBatch, EditRequest
from kedit_core.testing.facts import RELATIONS, edit_of, facts
from kedit_core.testing.states import State, names_of, state_of
from kedit_core.testing.training import trained_model

_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}\n{% endif %}"
)
"""A chat template as plain as can be: small models that never saw a chat have to answer behind it."""


@frozen(kw_only=True)
class Candidate:
    """A method that asks to be let in.

    Attributes:
        method: its name.
        config: settings laid over its defaults.
        tolerance: how much of their answers' probability neighbours may lose on average, 0 to 1.
        plugins: where it is found.
    """

    method: str
    config: Mapping[str, Any] | None
    tolerance: float
    plugins: Plugins = field(repr=False)

    @property
    def row(self) -> PluginRow | None:
        """Return what is known of its plugin, usable or broken."""
        return next((row for row in self.plugins.rows() if row.name == self.method), None)

    @property
    def info(self) -> MethodInfo:
        """Return its card."""
        return self.plugins.info(self.method)

    @property
    def remembers(self) -> bool:
        """Tell whether a new delta holds all that the earlier one held."""
        return self.info.kind != "weights"

    def implements(self, hook: str) -> bool:
        """Tell whether its plugin implements a hook."""
        return self.row is not None and hook in self.row.hooks


@frozen(kw_only=True)
class Edited:
    """One edit in force, for checks that only look.

    Attributes:
        editor: whose model holds it.
        delta: of the edit.
        request: that was asked for.
        before: the state of the model before the edit.
        names_before: of its parameters and of its state dict, before the edit.
    """

    editor: Editor
    delta: Delta
    request: EditRequest
    before: State = field(repr=False)
    names_before: tuple[Any, ...] = field(repr=False)


class Bench:
    """Lends out models of one family with editors on them, and asks what they say.

    Attributes:
        candidate: the method under test.
        family: of the models.
        models: where trained ones are kept.
        requests: ten edits, of every relation in turn.
        scratch: a folder for the checks' own files.
    """

    def __init__(self, candidate: Candidate, family: str, models: Path, scratch: Path) -> None:
        """Keep trained models in ``models`` and everything else in ``scratch``."""
        self.candidate, self.family, self.models, self.scratch = candidate, family, models, scratch
        self._number = count()
        each = len(facts()) // len(RELATIONS)
        turns = [facts()[each * (n % len(RELATIONS)) + n // len(RELATIONS)] for n in range(10)]
        self.requests = tuple(edit_of(fact) for fact in turns)

    def folder(self) -> Path:
        """Return a new empty folder."""
        made = self.scratch / f"{self.family}-{next(self._number)}"
        made.mkdir(parents=True)
        return made

    @property
    def cache_folder(self) -> Path:
        """Return where the method keeps what it makes once for this model, unless told otherwise."""
        return self.scratch / f"cache-{self.family}"

    def editor(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        fresh_cache: bool = False,
        chat: bool = False,
        changed: Callable[[PreTrainedModel], None] | None = None,
    ) -> Editor:
        """Return an editor of a model that nobody has touched.

        Args:
            dtype: of the model.
            fresh_cache: whether the method has to make anew what it keeps between edits.
            chat: whether prompts are rendered, through a chat template that the tokenizer gets.
            changed: makes another model of it first.
        """
        model, tokenizer = trained_model(self.family, dtype, self.models)
        if changed is not None:
            changed(model)
        if chat:
            tokenizer.chat_template = _TEMPLATE
        cache = TensorCache(self.folder() if fresh_cache else self.cache_folder)
        one = self.candidate
        return Editor(
            model, tokenizer, one.method, one.config, chat=chat, plugins=one.plugins, cache=cache
        )

    @cached_property
    def once(self) -> Edited:
        """Return the first edit in force, made once for all checks that only look."""
        editor, request = self.editor(), self.requests[0]
        before, names = state_of(editor), names_of(editor.model)
        delta = editor.edit(request)
        return Edited(
            editor=editor, delta=delta, request=request, before=before, names_before=names
        )

    @cached_property
    def several(self) -> tuple[Editor, Delta]:
        """Return an editor with eight edits in force and the last delta, for checks that only look."""
        editor = self.editor()
        return editor, editor.edit(self.requests[:8])

    @property
    def config(self) -> Any:
        """Return the method's settings."""
        return load_config(self.candidate.info.config, self.candidate.config)

    def compute(self, editor: Editor, *requests: EditRequest) -> Any:
        """Return what ``compute_delta`` gives when nobody cleans up after it, as core would.

        Args:
            editor: with none of the method's deltas in force.
            requests: the edits to make.
        """
        batch = EditBatch(requests=[request.without_probes() for request in requests])
        return self.compute_batch(editor, batch, self.config, ())

    def compute_batch(
        self, editor: Editor, batch: EditBatch, config: Any, previous: Sequence[Delta]
    ) -> Any:
        """Return what ``compute_delta`` makes of a batch.

        Args:
            editor: of a model as the method expects it.
            batch: the edits to make.
            config: the method's settings.
            previous: the method's deltas in force.
        """
        one = self.candidate
        return one.plugins.call(
            "compute_delta",
            one.method,
            model=editor.model,
            tokenizer=editor.tokenizer,
            batch=batch,
            config=config,
            previous=previous,
            weights=editor.weights,
            cache=editor.cache,
            progress=Progress(),
        )

    def apply(self, editor: Editor, delta: Delta) -> Applied:
        """Put a delta into the model behind the editor's back, and return what takes it out."""
        applied: Applied = self.candidate.plugins.call(
            "apply_delta",
            self.candidate.method,
            model=editor.model,
            tokenizer=editor.tokenizer,
            delta=delta,
            config=self.config,
            weights=editor.weights,
        )
        return applied

    def scope(self, editor: Editor, delta: Delta, prompts: Sequence[str]) -> Scope:
        """Return what ``scope_classify`` says of prompts."""
        found: Scope = self.candidate.plugins.call(
            "scope_classify",
            self.candidate.method,
            model=editor.model,
            tokenizer=editor.tokenizer,
            delta=delta,
            prompts=list(prompts),
        )
        return found


def scores(editor: Editor, requests: Sequence[EditRequest], metric: str) -> list[float]:
    """Return a metric of each request on the model as it is."""
    report = editor.evaluate(requests, [metric])
    found = {score.request: score.value for score in report.scores}
    return [found[request.id] for request in requests]


def holds(editor: Editor, requests: Sequence[EditRequest]) -> list[bool]:
    """Tell of each request whether its target is likelier than the old answer."""
    return [value > 0 for value in scores(editor, requests, "reliability.preference")]


@torch.no_grad()
def logits_of(editor: Editor, prompts: Sequence[str]) -> list[Tensor]:
    """Return what a model says to each prompt, read alone: (tokens, vocabulary)."""
    rows = [editor.tokenizer(prompt, return_tensors="pt") for prompt in prompts]
    return [
        editor.model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits[0]
        for row in rows
    ]


def same_bits(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[bool]:
    """Tell of each pair of tensors whether all their bits are the same."""
    return [digest(a) == digest(b) for a, b in zip(one, other, strict=True)]
