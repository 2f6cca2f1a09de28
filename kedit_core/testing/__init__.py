"""What a plugin's tests need: the contract of methods, models that know facts, and tiny random ones.

::

    from kedit_core.testing import MethodContract

    class TestMine(MethodContract):
        method = "mine"

It needs pytest, which ``pip install kedit-core[testing]`` brings.
"""

from kedit_core.testing.contract import Check, MethodContract, checks
from kedit_core.testing.facts import Fact, edit_of, facts, neighbours
from kedit_core.testing.tiny import byte_level_tokenizer, tiny_model
from kedit_core.testing.training import FAMILIES, trained_model

__all__ = [
    "FAMILIES",
    "Check",
    "Fact",
    "MethodContract",
    "byte_level_tokenizer",
    "checks",
    "edit_of",
    "facts",
    "neighbours",
    "tiny_model",
    "trained_model",
]
