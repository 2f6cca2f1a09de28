"""What a computation may depend on: its inputs, its seed, and nothing else."""

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedModel

from kedit_core.config import as_mapping
from kedit_core.request_files import record_of
from kedit_core.testing.bench import Bench
from kedit_core.testing.plugin_checks import in_a_new_process
from kedit_core.testing.training import FAMILIES

_ANEW = """
import importlib, json, sys
sys.path[:] = {path!r}
from pathlib import Path
import torch
from kedit_core import Editor, Plugins, TensorCache
from kedit_core.testing import trained_model
from kedit_core.request_files import request_from
torch.set_num_threads(1)
plugins = Plugins()
plugins.register(importlib.import_module({module!r}))
model, tokenizer = trained_model({family!r}, cache_folder=Path({models!r}))
cache = TensorCache(Path({cache!r}))
config = json.loads({config!r})
editor = Editor(model, tokenizer, {method!r}, config, plugins=plugins, cache=cache)
for record in json.loads({records!r}):
    delta = editor.edit(request_from(record))
sys.stdout.write(delta.id)
"""


class RepeatingChecks:
    """Checks that equal inputs give equal deltas, whatever happened before."""

    def test_computing_is_deterministic(self, bench: Bench) -> None:
        """Equal inputs and seeds give equal deltas."""
        ids = []
        for seed in (1, 2):
            editor = bench.editor(fresh_cache=True)
            with _other_chance(seed):
                ids.append(editor.edit(bench.requests[0]).id)
        assert ids[0] == ids[1], "two computations of one edit gave different deltas"

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

    def test_a_new_process_gives_the_same_delta(self, bench: Bench) -> None:
        """A new process gives the same delta, whatever was computed in the old one."""
        if bench.family != FAMILIES[-1]:
            pytest.skip(f"seen on the {FAMILIES[-1]} model: a process takes seconds")
        first, second, *_ = bench.requests
        bench.editor().edit(second)  # whoever keeps this for later gives it again below
        editor = bench.editor()
        editor.edit(first)
        here = editor.edit(second).id
        code = _ANEW.format(
            path=sys.path,
            module=bench.candidate.plugins.module(bench.candidate.method).__name__,
            family=bench.family,
            models=str(bench.models),
            cache=str(bench.cache_folder),
            config=json.dumps(as_mapping(bench.config)),
            method=bench.candidate.method,
            records=json.dumps([record_of(request) for request in (first, second)]),
        )
        there = in_a_new_process(bench.candidate, code)
        assert there == here, "in a process that computed it before, the edit gives another delta"

    def test_models_that_share_a_cache_folder_share_nothing_else(self, bench: Bench) -> None:
        """Models that share a cache folder get the deltas that each gets with a folder of its own."""
        request = bench.once.request
        if not any(bench.cache_folder.rglob("*.safetensors")):
            pytest.skip("the method keeps nothing in the cache")
        shared = bench.editor(changed=_another).edit(request)
        own = bench.editor(fresh_cache=True, changed=_another).edit(request)
        assert shared.id == own.id, "what the cache holds of another model shows in the delta"


def _another(model: PreTrainedModel) -> None:
    """Make another model of this one, which still knows its facts."""
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.randn(parameter.shape, generator=chance) / 50)


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
