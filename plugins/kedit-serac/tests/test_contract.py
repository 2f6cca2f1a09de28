"""SERAC keeps the contract of methods."""

import pytest

from kedit_core.testing import MethodContract
from kedit_core.testing.bench import Candidate


class TestSerac(MethodContract):
    method = "serac"

    @pytest.fixture
    def candidate(self, checkpoints):
        return Candidate(
            method=self.method,
            config={"checkpoint": str(checkpoints)},
            tolerance=self.tolerance,
            plugins=self.plugins(),
        )
