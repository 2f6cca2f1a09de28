"""What the tests of kedit-serac share: checkpoints for the contract's two models, trained once and kept."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from attrs import evolve

from kedit_core.testing import trained_model
from kedit_core.testing.facts import RELATIONS, edit_of, facts
from kedit_core.testing.kernels import interpreter, write_compiled
from kedit_core.testing.training import FAMILIES
from kedit_memory import (
    decoders,
    garbling,
    lexicons,
    pooling,
    readers,
    scope,
    scope_calibration,
    scope_examples,
    scope_facts,
    scope_training,
)
from kedit_memory.scope_files import BEST
from kedit_serac import checkpoints as files
from kedit_serac import counterfactual, lessons, pointing, rows, scoping
from kedit_serac.config import CounterfactualTraining, ScopeTraining
from kedit_serac.plans import TrainingPlan
from kedit_serac.shards import Source
from kedit_serac.training import Training

JUDGED = 3
"""The first facts of each relation: edited and judged, so nothing is trained on them."""

MADE_BY = (
    *(decoders, pooling, readers, lexicons, garbling),
    *(scope, scope_examples, scope_facts, scope_training, scope_calibration),
    *(counterfactual, pointing, files, lessons, rows, scoping),
)
"""What decides a trained checkpoint: when one of these modules changes, it is trained anew."""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


def requests_of(*, judged):
    """Return the edits of the contract that are judged, or the others, to train on.

    Those to train on take turns in giving their subjects every answer of their relation.
    """
    each = len(facts()) // len(RELATIONS)
    answers = [list(relation.answers.values()) for relation in RELATIONS]
    found = []
    for place, fact in enumerate(facts()):
        relation, own = divmod(place, each)
        if (own < JUDGED) == judged:
            other = answers[relation][own - JUDGED if own < 2 * JUDGED else (own + 1) % each]
            found.append(edit_of(fact) if judged else evolve(edit_of(fact), target_new=other))
    return found


def plan(folder, **changes):
    """Return a plan that suits models of 2 blocks and width 64."""
    return TrainingPlan(
        model="the contract's",
        requests=("facts",),
        out=str(folder),
        scope=ScopeTraining(width=64, steps=300, lr=3e-3),
        counterfactual=CounterfactualTraining(
            **{
                "steps": 400,
                "lr": 4e-3,
                "batch": 24,
                "validate": 200,
                "random_targets": 0.25,
                "locality": 0.0,  # with 28 facts, what the base says is learned by heart instead
                **changes,
            }
        ),
    )


@pytest.fixture(scope="session")
def plans():
    """Return the maker of plans: ``plans(folder, steps=…)``."""
    return plan


@pytest.fixture(scope="session")
def learned():
    """Return the facts of the contract that are trained on."""
    return requests_of(judged=False)


@pytest.fixture(scope="session")
def edited():
    """Return the facts of the contract that are edited and judged."""
    return requests_of(judged=True)


@pytest.fixture(scope="session")
def models(request, tmp_path_factory):
    """Return the folder where the contract's models are kept."""
    kept = getattr(request.config, "cache", None)
    return kept.mkdir("kedit") if kept else tmp_path_factory.mktemp("kedit")


@pytest.fixture(scope="session")
def checkpoints(models, tmp_path_factory):
    """Return a folder with a trained checkpoint for each of the contract's two models."""
    recipe = hashlib.sha256(repr(plan("")).encode())
    for module in MADE_BY:
        recipe.update(Path(str(module.__file__)).read_bytes())
    root = Path(models) / f"serac-{recipe.hexdigest()[:16]}"
    for family in FAMILIES:
        if not (root / family / BEST).exists():
            model, tokenizer = trained_model(family, cache_folder=models)
            making = tmp_path_factory.mktemp("making") / family
            Training(
                model,
                tokenizer,
                plan(making),
                [Source(name="facts", requests=requests_of(judged=False))],
                judged=requests_of(judged=True),
            ).run()
            _keep(making, root / family)
    return root


def _keep(made, kept):
    """Move a folder to where it is kept, unless another process was first."""
    beside = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.copytree(made, beside)  # what was made may lie on another disk
    try:
        beside.rename(kept)
    except OSError:
        shutil.rmtree(beside)
        if not (kept / BEST).exists():
            raise


@pytest.fixture(scope="session")
def interpreted():
    """Return ``call(function, *given)``, which runs the Triton side of an operator interpreted."""
    with interpreter() as call:
        yield call


def pytest_terminal_summary(terminalreporter):
    write_compiled(terminalreporter, "kedit-serac", "plugins/kedit-serac")
