"""A method under test on a model that knows facts."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit_core.cache import TensorCache
from kedit_core.config import load_config
from kedit_core.deltas import Delta
from kedit_core.digests import digest, state_digest
from kedit_core.editor import Editor
from kedit_core.methods import MethodInfo
from kedit_core.plugins import PluginRow, Plugins
from kedit_core.progress import Progress
from kedit_core.reports import Scope
from kedit_core.requests import EditBatch, EditRequest
from kedit_core.testing.facts import RELATIONS, edit_of, facts
from kedit_core.testing.training import trained_model
from kedit_core.untouched import collects_for_transformers


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
    before: tuple[Any, ...] = field(repr=False)
    names_before: tuple[Any, ...] = field(repr=False)


class Bench:
    """Lends out models of one family with editors on them, and asks what they say.

    Attributes:
        candidate: the method under test.
        family: of the models.
        requests: ten edits, of every relation in turn.
        scratch: a folder for the checks' own files.
    """

    def __init__(self, candidate: Candidate, family: str, models: Path, scratch: Path) -> None:
        """Keep trained models in ``models`` and everything else in ``scratch``."""
        self.candidate, self.family, self.scratch = candidate, family, scratch
        self._models = models
        self._number = count()
        each = len(facts()) // len(RELATIONS)
        turns = [facts()[each * (n % len(RELATIONS)) + n // len(RELATIONS)] for n in range(10)]
        self.requests = tuple(edit_of(fact) for fact in turns)

    def folder(self) -> Path:
        """Return a new empty folder."""
        made = self.scratch / f"{self.family}-{next(self._number)}"
        made.mkdir(parents=True)
        return made

    def editor(self, dtype: torch.dtype = torch.float32, *, fresh_cache: bool = False) -> Editor:
        """Return an editor of a model that nobody has touched.

        Args:
            dtype: of the model.
            fresh_cache: whether the method has to make anew what it keeps between edits.
        """
        model, tokenizer = trained_model(self.family, dtype, self._models)
        cache = TensorCache(self.folder() if fresh_cache else self.scratch / f"cache-{self.family}")
        one = self.candidate
        return Editor(model, tokenizer, one.method, one.config, plugins=one.plugins, cache=cache)

    @cached_property
    def once(self) -> Edited:
        """Return the first edit in force, made once for all checks that only look."""
        editor, request = self.editor(), self.requests[0]
        before, names = state_of(editor.model), names_of(editor.model)
        delta = editor.edit(request)
        return Edited(
            editor=editor, delta=delta, request=request, before=before, names_before=names
        )

    def compute(self, editor: Editor, *requests: EditRequest) -> Any:
        """Return what ``compute_delta`` gives when nobody cleans up after it, as core would.

        Args:
            editor: with none of the method's deltas in force.
            requests: the edits to make.
        """
        one = self.candidate
        config: Any = load_config(one.info.config, one.config)
        return one.plugins.call(
            "compute_delta",
            one.method,
            model=editor.model,
            tokenizer=editor.tokenizer,
            batch=EditBatch(requests=[request.without_probes() for request in requests]),
            config=config,
            previous=(),
            weights=editor.weights,
            cache=editor.cache,
            progress=Progress(),
        )

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


def names_of(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return the paths of a model's parameters and the keys of its state dict."""
    return tuple(path for path, _ in model.named_parameters()), tuple(model.state_dict())


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Return everything about a model that an edit must leave as it was, to be compared."""
    hooks = [
        (path, name, hook)
        for path, module in model.named_modules()
        for name, found in vars(module).items()
        if name.endswith(("hooks", "hooks_with_kwargs", "hooks_always_called"))
        for hook in found.values()
        if not collects_for_transformers(hook)
    ]
    return (
        ("weights", state_digest(model)),
        ("buffers", [(path, digest(one)) for path, one in model.named_buffers()]),
        ("modules", [(path, type(one).__name__) for path, one in model.named_modules()]),
        ("hooks", hooks),
        ("forward", [path for path, one in model.named_modules() if "forward" in vars(one)]),
        ("mode", [path for path, module in model.named_modules() if module.training]),
        ("requires_grad", [path for path, one in model.named_parameters() if one.requires_grad]),
        ("gradients", [path for path, one in model.named_parameters() if one.grad is not None]),
    )


def differing(before: Sequence[Any], after: Sequence[Any]) -> str:
    """Return which pieces of two states differ, by name."""
    return ", ".join(
        name for (name, one), (_, other) in zip(before, after, strict=True) if one != other
    )
