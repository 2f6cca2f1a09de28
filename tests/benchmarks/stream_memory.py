"""What a long stream holds in memory: resident set after edit 10 and after edit 1,000.

``python tests/benchmarks/stream_memory.py [--edits 1000] [--method rome] [--kept] [--rounds 2]``. Edits may
leave no more behind than the bytes of their deltas and 5 %; kept ones one history state a layer besides.
The stream is made twice in one process: in the first round torch's kernels (by shape) and the tokenizer's
pieces (by word) fill caches that are bounded, some MiB in all. Exits 1 where the last round leaves more.
"""

import gc
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from kedit_core import Delta, Dense, Editor, EditRequest, LowRank, Plugins
from kedit_core.cli.screen import screen
from kedit_core.schedule import Schedule

FIRST = 10
_PAGE = resource.getpagesize()


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def size(delta: Delta) -> int:
    """Return the bytes of a delta's tensors."""
    tensors = list(delta.carry.values())
    for part in delta.parts:
        match part:
            case LowRank():
                tensors += [part.left, part.right]
            case Dense():
                tensors.append(part.update)
            case _:
                tensors += part.tensors.values()
    return sum(one.nbytes for one in tensors)


def grown(editor: Editor, requests: Sequence[EditRequest], kept: bool) -> tuple[list[int], int]:
    """Return what is in memory after edit 10 and after the last, and the bytes of the deltas made between."""
    found, stored = [], 0
    schedule = Schedule(keep=kept)
    for judgement in editor.stream(requests, schedule, metrics=["reliability.exact"]):
        stored += size(editor.deltas[-1]) if judgement.at > FIRST else 0
        if judgement.at in (FIRST, len(requests)):
            found.append(resident())
    while editor.deltas:
        editor.undo()
    return found, stored


def main(
    model: str = "atlas:gpt2",
    method: str = "rome",
    edits: int = 1000,
    kept: bool = False,
    rounds: int = 2,
) -> None:
    """Make the streams and look at the memory."""
    torch.set_num_threads(1)
    plugins = Plugins.installed()
    requests = list(plugins.call_all("read_requests", source="atlas:editable"))[:edits]
    settings = {"search": {"steps": 2}, "statistics": {"per_feature": 1}}
    editor = Editor.from_pretrained(model, method, settings, plugins=plugins)
    downs = [layer.down for layer in editor.weights.layout.layers if layer.down is not None]
    state = sum(4 * down.in_features**2 for down in downs) if kept else 0
    less = True
    for number in range(1, rounds + 1):
        (first, last), stored = grown(editor, requests, kept)
        less = last - first <= 1.05 * stored + state
        screen().print(
            f"{model}, {method}, {len(requests)} edits, {'kept' if kept else 'restored'}, round {number}: "
            f"{first / 2**20:.1f} MiB after edit {FIRST}, {last / 2**20:.1f} MiB after the last; grown by "
            f"{(last - first) / 2**20:.2f} MiB, {stored / 2**20:.2f} MiB of deltas were made meanwhile"
        )
    sys.exit(not less)


if __name__ == "__main__":
    typer.run(main)
