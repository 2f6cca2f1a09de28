"""PMET keeps the contract of methods."""

from typing import ClassVar

from kedit_core.testing import MethodContract


class TestPmet(MethodContract):
    method = "pmet"
    # A small model needs few texts; without a corpus it samples its own.
    config: ClassVar = {
        "penalty": 30.0,
        "context": {"count": 3},
        "statistics": {"tokens": 2048},
    }
