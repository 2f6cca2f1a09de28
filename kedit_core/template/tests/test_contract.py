"""my-method keeps the contract of methods."""

from kedit_core.testing import MethodContract


class TestMyMethod(MethodContract):
    method = "my-method"
