"""WISE keeps the contract of methods when a trained classifier routes."""

import pytest

from kedit_core.testing import MethodContract
from kedit_core.testing.bench import Candidate


class TestScopedWise(MethodContract):
    method = "wise"

    @pytest.fixture
    def candidate(self, classifiers):
        return Candidate(
            method=self.method,
            config={
                "closed_form": {"penalty": 30.0, "statistics": {"tokens": 2048}},
                "context": {"count": 3},
                "routes": {"router": "scope", "checkpoint": str(classifiers), "count": 128},
            },
            tolerance=self.tolerance,
            plugins=self.plugins(),
        )

    def test_models_that_share_a_cache_folder_share_nothing_else(self):
        pytest.skip("its other model has no classifier")
