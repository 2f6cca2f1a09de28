"""What undo and interrupts leave behind: nothing.

``python tests/benchmarks/undo.py [--edits 100] [--interrupts 20]`` edits both embedded models in float32
and bfloat16, undoes all edits in random order, then interrupts edits at random moments by Ctrl-C and by
exceptions from inside a forward. After each the sha256 of the whole state dict must be the first one;
exits 1 when it is not.
"""

import os
import random
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import torch
import typer
from rich.console import Console
from rich.table import Table

from kedit_core import Editor, EditRequest, Plugins
from kedit_core.cli.screen import quiet_transformers
from kedit_core.digests import state_digest

console = Console(highlight=False, emoji=False)


class Interruption(Exception):  # noqa: N818
    """Raised from inside a forward."""


def undone_in_random_order(
    editor: Editor, requests: Sequence[EditRequest], rng: random.Random
) -> bool:
    """Edit all, undo all in random order, and return whether every bit is back."""
    before = state_digest(editor.model)
    deltas = [editor.edit(request) for request in requests]
    changed = state_digest(editor.model) != before
    for delta in rng.sample(deltas, len(deltas)):
        editor.undo(delta.id)
    return changed and state_digest(editor.model) == before


def interrupted(editor: Editor, request: EditRequest, seconds: float) -> bool:
    """Send Ctrl-C after some seconds of an edit; return whether it came and left every bit."""
    before = state_digest(editor.model)
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    came = False
    try:
        timer.start()
        editor.edit(request)
        timer.join()
    except KeyboardInterrupt:
        came = True
    with suppress(KeyboardInterrupt):
        timer.join()
    while editor.deltas:
        editor.undo()
    return came and state_digest(editor.model) == before


def raised(editor: Editor, request: EditRequest, calls: int) -> bool:
    """Raise from the n-th module call of an edit; return whether it came and left every bit."""
    before = state_digest(editor.model)
    left = [calls]

    def count(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Interruption

    handles = [module.register_forward_hook(count) for module in editor.model.modules()]
    came = False
    try:
        editor.edit(request)
    except Interruption:
        came = True
    finally:
        for handle in handles:
            handle.remove()
    clean = not editor.deltas and not any(
        module._forward_hooks for module in editor.model.modules()
    )
    while editor.deltas:
        editor.undo()
    return came and clean and state_digest(editor.model) == before


def run(edits: int = 100, interrupts: int = 20, seed: int = 0) -> None:
    """Print a table of what was tried and whether every bit came back."""
    torch.set_num_threads(1)
    # A shell starts background jobs with Ctrl-C ignored; here it must arrive.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plugins = Plugins.installed()
    found = list(plugins.call_all("read_requests", source="atlas:editable"))
    rng = random.Random(seed)
    table = Table("MODEL", "DTYPE", "WHAT", "BITS AS BEFORE", box=None)
    good = True
    for name in ("atlas:gpt2", "atlas:llama"):
        for dtype in (torch.float32, torch.bfloat16):
            with quiet_transformers():
                editor = Editor.from_pretrained(name, "rome", dtype=dtype, plugins=plugins)
            requests = rng.sample(found, edits + 1)
            editor.edit(
                requests[-1]
            )  # collects what is cached, so that interrupts meet the edit itself
            started = perf_counter()
            editor.undo()
            editor.edit(requests[-1])
            seconds = perf_counter() - started
            editor.undo()
            delays = [rng.uniform(0, seconds * 0.9) for _ in range(interrupts)]
            calls = [rng.randint(1, 400) for _ in range(interrupts)]
            rows = {
                f"{edits} edits undone in random order": [
                    undone_in_random_order(editor, requests[:edits], rng)
                ],
                f"Ctrl-C at {interrupts} random moments": [
                    interrupted(editor, requests[0], delay) for delay in delays
                ],
                f"an exception at {interrupts} random module calls": [
                    raised(editor, requests[0], count) for count in calls
                ],
            }
            for what, results in rows.items():
                kind = str(dtype).removeprefix("torch.")
                table.add_row(name, kind, what, f"{sum(results)} of {len(results)}")
                good &= all(results)
    console.print(table)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(run)
