"""What a long stream holds in memory: resident set after edit 10 and after edit 1,000.

``python tests/benchmarks/stream_memory.py [--edits 1000] [--method rome] [--kept]``. Restored edits
(``keep=False``) may leave nothing behind; kept ones no more than the bytes of their deltas, 5 % and one
history state a layer. Exits 1 where more is left.
"""

import gc
import resource
import sys
from pathlib import Path

import torch
import typer

from kedit_core import Delta, Dense, Editor, LowRank, Plugins
from kedit_core.cli.screen import screen
from kedit_core.schedule import Schedule

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


def main(
    model: str = "atlas:gpt2", method: str = "rome", edits: int = 1000, kept: bool = False
) -> None:
    """Make a stream and look at the memory."""
    torch.set_num_threads(1)
    plugins = Plugins.installed()
    requests = list(plugins.call_all("read_requests", source="atlas:editable"))[:edits]
    settings = {"search": {"steps": 2}, "statistics": {"per_feature": 1}}
    editor = Editor.from_pretrained(model, method, settings, plugins=plugins)
    schedule = Schedule(keep=kept)
    found: dict[int, int] = {}
    stored = 0
    for judgement in editor.stream(requests, schedule, metrics=["reliability.exact"]):
        stored += size(editor.deltas[-1]) if judgement.at > 10 else 0
        if judgement.at in (10, len(requests)):
            found[judgement.at] = resident()
    grown = found[len(requests)] - found[10]
    state = (
        sum(4 * layer.down.shape[1] ** 2 for layer in editor.weights.layout.layers) if kept else 0
    )
    allowed = 1.05 * stored + state if kept else 1.05 * stored
    console = screen()
    console.print(
        f"{model}, {method}, {len(requests)} edits, {'kept' if kept else 'restored'}: "
        f"{found[10] / 2**20:.1f} MiB after edit 10, {found[len(requests)] / 2**20:.1f} MiB after the last; "
        f"grown by {grown / 2**20:.2f} MiB, {stored / 2**20:.2f} MiB of deltas were made meanwhile"
    )
    sys.exit(grown > allowed)


if __name__ == "__main__":
    typer.run(main)
