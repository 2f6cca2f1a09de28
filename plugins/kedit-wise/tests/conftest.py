"""What the tests of kedit-wise share: one torch thread, an own cache, and small models."""

import pytest
import torch

from kedit_core import EditRequest, Weights
from kedit_core.progress import Progress
from kedit_core.testing import byte_level_tokenizer, tiny_model, trained_model
from kedit_core.testing.facts import RELATIONS, edit_of
from kedit_core.testing.facts import facts as all_facts
from kedit_core.testing.kernels import interpreter, write_compiled
from kedit_core.testing.training import FAMILIES
from kedit_memory.lexicons import lexicon_of
from kedit_memory.pooling import sites_of
from kedit_memory.scope_calibration import calibrated
from kedit_memory.scope_examples import examples_of
from kedit_memory.scope_facts import facts_of
from kedit_memory.scope_files import BEST, StoredScope, made_for, write_scope
from kedit_memory.scope_training import Lesson, train_scope, untrained

JUDGED = 3
"""The first facts of each relation: edited, so that no classifier is trained on them."""


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


@pytest.fixture(scope="session")
def learned():
    """Return the facts that classifiers are trained on, apart from those for their calibration."""
    each = len(all_facts()) // len(RELATIONS)
    others = [edit_of(one) for n, one in enumerate(all_facts()) if n % each >= JUDGED]
    return [one for n, one in enumerate(others) if n % 4], others[::4]


@pytest.fixture(scope="session")
def classifiers(models, learned, tmp_path_factory):
    """Return a folder with a scope classifier for each of the contract's two models."""
    root = tmp_path_factory.mktemp("classifiers")
    for family in FAMILIES:
        model, tokenizer = trained_model(family, cache_folder=models)
        weights, progress = Weights(model), Progress()
        sites = sites_of(weights.layout)
        lexicon = lexicon_of((one.prompt for one in learned[0]), 1024)
        training, validation = (
            examples_of(model, tokenizer, facts_of(some), sites, progress, lexicon=lexicon)
            for some in learned
        )
        lesson = Lesson(width=64, steps=300, lr=3e-3)
        trained = train_scope(training, untrained(sites, lexicon), lesson, progress)
        classifier, _ = calibrated(
            trained, validation, training, rejects=0.98, rejects_same_subject=0.9
        )
        (root / family).mkdir()
        known = made_for(weights, tokenizer)
        write_scope(StoredScope(classifier=classifier, made_for=known), root / family / BEST)
    return root


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
