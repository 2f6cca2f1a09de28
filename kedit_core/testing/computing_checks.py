"""What ``compute_delta`` must be like: it looks, and says what to change."""

import io
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from kedit_core.deltas import Delta, SideMemory
from kedit_core.testing.bench import Bench, differing, state_of


class ComputingChecks:
    """Checks of the computation alone, without what core does around it."""

    def test_computing_leaves_the_model_as_it_was(self, bench: Bench) -> None:
        """When it returns, the model is bit for bit as before: weights, buffers, hooks, grads, mode."""
        editor = bench.editor()
        before = state_of(editor.model)
        bench.compute(editor, bench.requests[0])
        changed = differing(before, state_of(editor.model))
        assert not changed, f"compute_delta left behind other {changed}"

    def test_computing_leaves_the_model_as_it_was_when_it_raises(self, bench: Bench) -> None:
        """When it raises, wherever that is, the model is bit for bit as before all the same."""
        editor = bench.editor(fresh_cache=True)
        with _counting(editor.model, _never) as calls:
            bench.compute(editor, bench.requests[0])
        if not calls:
            pytest.skip("it computes without the model, so nothing in the model can interrupt it")
        for place in sorted({1, len(calls) // 2, len(calls)}):
            editor = bench.editor(fresh_cache=True)
            before = state_of(editor.model)
            with suppress(_InterruptedError), _counting(editor.model, place.__eq__):
                bench.compute(editor, bench.requests[0])
            changed = differing(before, state_of(editor.model))
            assert not changed, f"interrupted, compute_delta left behind other {changed}"

    def test_computing_is_deterministic(self, bench: Bench) -> None:
        """Equal inputs and seeds give equal deltas."""
        ids = []
        for seed in (1, 2):
            editor = bench.editor(fresh_cache=True)
            with _other_chance(seed):
                ids.append(editor.edit(bench.requests[0]).id)
        assert ids[0] == ids[1], "two computations of one edit gave different deltas"

    def test_computing_and_applying_are_silent(self, bench: Bench) -> None:
        """Nothing is printed, warned of, or written outside the cache."""
        editor, folder = bench.editor(fresh_cache=True), bench.folder()
        with _listening() as heard, chdir(folder):
            editor.edit(bench.requests[0])
        assert not heard.text, f"it printed {heard.text[:200]!r}"
        assert not heard.warned, f"it warned: {heard.warned[0]}"
        files = sorted(path.name for path in folder.rglob("*"))
        assert not files, f"it wrote {', '.join(files)} into the working folder"

    def test_no_state_is_kept_outside_deltas_cache_and_config(self, bench: Bench) -> None:
        """No state is kept outside deltas, cache and config."""
        first, second, *_ = bench.requests
        alone = bench.editor().edit(second)
        other = bench.editor()
        other.edit(first)
        other.undo()
        after = other.edit(second)
        assert after.id == alone.id, "an edit that was undone shows in the next one"
        fresh = bench.editor().edit(second)
        assert fresh.id == alone.id, "an edit of another model shows in this one"

    def test_the_delta_fits_and_is_finite(self, bench: Bench) -> None:
        """The delta has parts of the declared kind that fit the model and hold finite numbers."""
        editor, info = bench.editor(), bench.candidate.info
        delta = bench.compute(editor, bench.requests[0])
        assert isinstance(delta, Delta), f"compute_delta returned {type(delta).__name__}"
        assert delta.method == info.name, f"the delta says it is of {delta.method!r}"
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


@contextmanager
def _other_chance(seed: int) -> Iterator[None]:
    """Put the global random states elsewhere inside the block: an edit must not depend on them."""
    held = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(held)


class _Heard:
    """What was said inside a block."""

    def __init__(self) -> None:
        self.text = ""
        self.warned: list[str] = []


@contextmanager
def _listening() -> Iterator[_Heard]:
    """Hear what Python and what C code prints, and what is warned of."""
    heard, said = _Heard(), io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            with redirect_stdout(said), redirect_stderr(said):
                yield heard
        finally:
            for descriptor, own in zip((1, 2), kept, strict=True):
                os.dup2(own, descriptor)
                os.close(own)
        file.seek(0)
        heard.text = said.getvalue() + file.read().decode(errors="replace")
    heard.warned = [
        str(one.message) for one in warned if not issubclass(one.category, DeprecationWarning)
    ]
