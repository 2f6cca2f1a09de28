"""What the tests of kedit-wise share: one torch thread, an own cache, and small models."""

import pytest
import torch

from kedit_core import EditRequest
from kedit_core.testing import byte_level_tokenizer, tiny_model
from kedit_core.testing.kernels import interpreter, write_compiled


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer():
    """Return a byte-level tokenizer that adds nothing to a text, as GPT-2's."""
    return byte_level_tokenizer(bos=False)


@pytest.fixture(scope="session")
def models(request, tmp_path_factory):
    """Return the folder where the contract's models are kept."""
    kept = getattr(request.config, "cache", None)
    return kept.mkdir("kedit") if kept else tmp_path_factory.mktemp("kedit")


@pytest.fixture
def tiny():
    """Return the maker of tiny models: ``tiny("gpt2")``, ``tiny("llama", dtype=…)``."""
    return tiny_model


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """Return a float64 model, of Conv1D and of Linear modules."""
    return tiny_model(request.param)


@pytest.fixture
def facts():
    return [
        EditRequest(prompt="{} plays the", subject="Toko Yasuda", target_new="guitar"),
        EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima"),
        EditRequest(prompt="We hear of {}", subject="the Space Needle", target_new="the city"),
    ]


@pytest.fixture(scope="session")
def interpreted():
    """Return ``call(function, *given)``, which runs the Triton side of an operator interpreted."""
    with interpreter() as call:
        yield call


def pytest_terminal_summary(terminalreporter):
    write_compiled(terminalreporter, "kedit-wise", "plugins/kedit-wise")
