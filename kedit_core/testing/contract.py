"""The contract of methods, as tests that a plugin's author runs by subclassing one class."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
from attrs import frozen

from kedit_core.plugins import Plugins
from kedit_core.testing.applying_checks import ApplyingChecks
from kedit_core.testing.bench import Bench, Candidate
from kedit_core.testing.computing_checks import ComputingChecks
from kedit_core.testing.memory_checks import MemoryChecks
from kedit_core.testing.plugin_checks import PluginChecks
from kedit_core.testing.repeating_checks import RepeatingChecks
from kedit_core.testing.scope_checks import ScopeChecks
from kedit_core.testing.sequence_checks import SequenceChecks
from kedit_core.testing.states import same_process
from kedit_core.testing.training import FAMILIES, one_thread

_BENCHES = pytest.StashKey[dict[str, Bench]]()


class MethodContract(
    MemoryChecks,
    ScopeChecks,
    SequenceChecks,
    ApplyingChecks,
    RepeatingChecks,
    ComputingChecks,
    PluginChecks,
):
    """All checks of a method, on a model of Conv1D modules and on one of Linear modules.

    Subclass it in a test file, under a name that begins with ``Test``, and name the method. A check
    that does not concern a method (scope, memory, carry) is skipped with its reason.

    Attributes:
        method: name of the method, that of its entry point.
        config: settings laid over the method's defaults, best such as suit models of 2 blocks and
            width 64.
        tolerance: how much of the probability of their right answers the nine facts of the same
            relation may lose, mean over them and over three edits, 0 to 1.
    """

    method: ClassVar[str]
    config: ClassVar[Mapping[str, Any] | None] = None
    tolerance: ClassVar[float] = 0.1

    def plugins(self) -> Plugins:
        """Return where the method is found; override it to test a module that is not installed."""
        return Plugins.installed()

    @pytest.fixture
    def candidate(self) -> Candidate:
        """Return the method under test."""
        return Candidate(
            method=self.method,
            config=self.config,
            tolerance=self.tolerance,
            plugins=self.plugins(),
        )

    @pytest.fixture(params=FAMILIES)
    def bench(
        self,
        request: pytest.FixtureRequest,
        candidate: Candidate,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Bench]:
        """Return the method on the model of one family; the trained models stay in pytest's cache."""
        # Kept by the class: checks that only look share one edit.
        owner = request.node.getparent(pytest.Class)
        benches = owner.stash.setdefault(_BENCHES, {})
        if request.param not in benches:
            kept = getattr(request.config, "cache", None)
            models = kept.mkdir("kedit") if kept else tmp_path_factory.getbasetemp() / "kedit"
            scratch = tmp_path_factory.mktemp(f"contract-{request.param}")
            benches[request.param] = Bench(candidate, request.param, models, scratch)
        with same_process(), one_thread():
            yield benches[request.param]


@frozen(kw_only=True)
class Check:
    """One check of the contract.

    Attributes:
        name: of its test.
        sentence: of the contract that it holds a method to.
    """

    name: str
    sentence: str


def checks() -> tuple[Check, ...]:
    """Return all checks, in the order in which they are read."""
    found = []
    for part in reversed(MethodContract.__mro__[1:-1]):
        for name, test in vars(part).items():
            if name.startswith("test_"):
                sentence = (inspect.getdoc(test) or "").partition("\n")[0]
                found.append(Check(name=name, sentence=sentence))
    return tuple(found)
