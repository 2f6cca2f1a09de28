"""What a computation runs on, and that memory which was freed goes back to the system."""

import ctypes
import resource
import sys
from pathlib import Path

import pytest
import torch

from kedit_core import streams
from kedit_core.machine import give_back_memory
from kedit_core.schedule import Schedule

glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.skipif(not glibc, reason="the C library cannot be asked")
def test_memory_between_what_is_held_goes_back():
    pieces = [torch.ones(8192) for _ in range(4096)]  # 32 KiB each, 128 MiB
    held = pieces[::256]
    before = resident()
    del pieces
    give_back_memory()
    assert resident() < before - 64
    assert all(bool(one.all()) for one in held)


def test_a_stream_gives_memory_back_after_each_judgement(edit_with, facts, monkeypatch):
    editor, given = edit_with(), []
    monkeypatch.setattr(streams, "give_back_memory", lambda: given.append(len(editor.history)))
    for _ in editor.stream(facts(4), Schedule(batch_size=1, interval=2, keep=False)):
        pass
    assert given == [2, 2]  # before it tells of the judgement
