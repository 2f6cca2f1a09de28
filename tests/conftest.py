"""What all tests share: one torch thread, and no cache outside the test's own folder."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def gradients():
    """Put gradients on again: a real Ctrl-C may strike inside ``torch.no_grad()`` itself."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
