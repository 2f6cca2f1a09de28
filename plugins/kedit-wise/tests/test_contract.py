"""WISE keeps the contract of methods, solved for and trained."""

from typing import ClassVar

from kedit_core.testing import MethodContract


class TestWise(MethodContract):
    method = "wise"
    # A small model needs few texts; without a corpus it samples its own.
    config: ClassVar = {
        "closed_form": {"penalty": 30.0, "statistics": {"tokens": 2048}},
        "context": {"count": 3},
        "routes": {"count": 128},
    }
