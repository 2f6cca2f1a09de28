"""ROME keeps the contract of methods."""

from typing import ClassVar

from kedit_core.testing import MethodContract


class TestRome(MethodContract):
    method = "rome"
    # A small model needs few steps and few texts; without a corpus it samples its own.
    config: ClassVar = {
        "layer": 0,
        "search": {"steps": 40},
        "context": {"count": 3},
        "statistics": {"tokens": 2048},
    }
