"""Several processes that train together make the steps of one."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kedit_core.errors import KeditError
from kedit_memory.scope_files import BEST
from kedit_serac.checkpoints import read
from kedit_serac.counterfactual import new_counterfactual
from kedit_serac.teams import ALONE, Team, team
from kedit_serac.training import LOG

TRAIN = Path(__file__).with_name("train_together.py")


def test_who_is_alone_has_all_and_nothing_is_started():
    with team(asked=False) as found:
        assert found == ALONE
        assert found.first
        assert found.own((1, 2, 3)) == (1, 2, 3)
        assert found.told(0.5) == 0.5
    assert not torch.distributed.is_initialized()


def test_every_process_has_its_part():
    parts = [Team(rank=rank, size=3).own(range(8)) for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_without_others_to_meet_it_says_how_to_start_them(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeditError, match="torchrun"), team(asked=True):
        pass


def test_two_processes_end_at_the_weights_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    start += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    subprocess.run([*start, str(TRAIN), str(tmp_path)], check=True, timeout=300)
    one, two, broken = (read(tmp_path / name / BEST) for name in ("one", "two", "broken"))
    assert not torch.equal(one.weights["shift"], new_counterfactual(one.shape, 0).shift)
    for name, alone in one.weights.items():
        torch.testing.assert_close(two.weights[name], alone, rtol=1e-4, atol=1e-6)
        assert torch.equal(two.weights[name], broken.weights[name]), name
    assert one.classifier == two.classifier
    # Both processes hold the same bits, and one of them wrote the log.
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len((tmp_path / "two" / LOG).read_text().splitlines()) == 2
