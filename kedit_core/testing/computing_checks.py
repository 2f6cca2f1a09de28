"""What ``compute_delta`` must be like: it looks, and says what to change."""

from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from kedit_core.deltas import Delta, SideMemory
from kedit_core.requests import EditBatch
from kedit_core.testing.bench import Bench
from kedit_core.testing.ears import listening
from kedit_core.testing.states import content_of, differing, state_of


class ComputingChecks:
    """Checks of the computation alone, without what core does around it."""

    def test_computing_leaves_the_model_as_it_was(self, bench: Bench) -> None:
        """When it returns, model, tokenizer and process are as before: bits, hooks, settings, chance."""
        editor = bench.editor()
        before = state_of(editor)
        bench.compute(editor, bench.requests[0])
        changed = differing(before, state_of(editor))
        assert not changed, f"compute_delta left behind other {changed}"

    def test_computing_leaves_the_model_as_it_was_when_it_raises(self, bench: Bench) -> None:
        """When it raises, wherever that is, all of them are as before all the same."""
        editor = bench.editor(fresh_cache=True)
        with _counting(editor.model, _never) as calls:
            bench.compute(editor, bench.requests[0])
        if not calls:
            pytest.skip("it computes without the model, so nothing in the model can interrupt it")
        for place in sorted({1, len(calls) // 2, len(calls)}):
            editor = bench.editor(fresh_cache=True)
            before = state_of(editor)
            with suppress(_InterruptedError), _counting(editor.model, place.__eq__):
                bench.compute(editor, bench.requests[0])
            changed = differing(before, state_of(editor))
            where = f"interrupted at call {place} of {len(calls)}"
            assert not changed, f"{where}, compute_delta left behind other {changed}"

    def test_what_a_hook_is_given_stays_as_it_was(self, bench: Bench) -> None:
        """What a hook is given stays as it was: batch, config, deltas and the tensors in them."""
        first, second = (request.without_probes() for request in bench.requests[:2])
        editor = bench.editor()
        delta = bench.compute(editor, first)
        given = EditBatch(requests=[second]), bench.config, [delta]
        before = content_of(*given)
        # A memory computes without its own earlier delta in the model.
        with nullcontext() if bench.candidate.remembers else bench.apply(editor, delta):
            bench.compute_batch(editor, *given)
        assert content_of(*given) == before, "compute_delta changed its batch, config or deltas"
        editor, before = bench.editor(), content_of(delta)
        with bench.apply(editor, delta):
            assert content_of(delta) == before, "apply_delta changed the delta"
            editor.model(**editor.tokenizer(first.prompt, return_tensors="pt"))
        assert content_of(delta) == before, "a forward pass or undo() changed the delta"

    def test_computing_and_applying_are_silent(self, bench: Bench) -> None:
        """Nothing is printed, warned of, logged as a warning, or written outside the cache."""
        editor, folder = bench.editor(fresh_cache=True), bench.folder()
        with listening() as heard, chdir(folder):
            editor.edit(bench.requests[0])
        heard.check("it")
        files = sorted(path.name for path in folder.rglob("*"))
        assert not files, f"it wrote {', '.join(files)} into the working folder"

    def test_the_delta_fits_and_is_finite(self, bench: Bench) -> None:
        """The delta has parts of the declared kind that fit the model and hold finite numbers."""
        editor, info = bench.editor(), bench.candidate.info
        delta = bench.compute(editor, bench.requests[0])
        assert isinstance(delta, Delta), f"compute_delta returned {type(delta).__name__}"
        assert delta.method == info.name, f"the delta says it is of {delta.method!r}"
        asked = [bench.requests[0].id]
        named = [request.id for request in delta.requests]
        assert named == asked, f"the delta is of the requests {named}, and {asked} was asked for"
        assert delta.parts, "the delta has no parts"
        editor.weights.check(delta)
        beside = [isinstance(part, SideMemory) for part in delta.parts]
        assert beside == [info.kind != "weights"] * len(beside), (
            f"parts are not of kind {info.kind}"
        )
        modules = {path for path, _ in editor.model.named_modules()}
        for part in delta.parts:
            if isinstance(part, SideMemory):
                assert part.at in modules, f"the model has no module {part.at!r}"
                for name, tensor in part.tensors.items():
                    assert torch.isfinite(tensor).all(), f"{name} holds values that are not finite"
        for name, tensor in delta.carry.items():
            assert torch.isfinite(tensor).all(), f"carry {name} holds values that are not finite"


class _InterruptedError(Exception):
    """What a module of the model raises in the middle of a computation."""


def _never(_: int) -> bool:
    return False


@contextmanager
def _counting(model: nn.Module, fails: Callable[[int], bool]) -> Iterator[list[int]]:
    """Count calls of the model's modules, from 1, and raise at those that ``fails`` names."""
    own = {id(module) for module in model.modules()}
    calls: list[int] = []

    def count(module: nn.Module, _: Any) -> None:
        if id(module) in own:
            calls.append(len(calls) + 1)
            if fails(len(calls)):
                raise _InterruptedError

    handle = register_module_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
