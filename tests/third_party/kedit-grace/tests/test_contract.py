"""GRACE keeps the contract of methods."""

from kedit_core.testing import MethodContract


class TestGrace(MethodContract):
    method = "grace"
