"""Finding plugins, keeping broken ones apart, and calling the one that was asked for."""

import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from time import perf_counter
from types import ModuleType
from typing import Any

import pluggy
from attrs import field, frozen

from kedit_core import builtin, hookspecs
from kedit_core.errors import (
    BrokenPluginError,
    KeditError,
    PluginConflictError,
    UnknownMethodError,
    did_you_mean,
)
from kedit_core.methods import API, Kind, MethodInfo

_GROUP = "kedit"
_METHODS_ONLY = ("compute_delta", "apply_delta", "scope_classify")


@frozen(kw_only=True)
class PluginRow:
    """What is known of one installed plugin.

    Attributes:
        name: of its entry point.
        package: distribution and version.
        info: the method's card; None for an observer and for a broken plugin.
        hooks: names of the hooks that it implements.
        problem: why it cannot be used; empty when it can.
    """

    name: str
    package: str = ""
    info: MethodInfo | None = None
    hooks: tuple[str, ...] = ()
    problem: str = ""
    error: KeditError | None = field(default=None, repr=False, eq=False)


class Plugins:
    """The plugins in use. ``Plugins()`` knows only core's own; ``Plugins.installed()`` finds all."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(_GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(builtin, name="core")
        self._rows: dict[str, PluginRow] = {}
        self._modules: dict[str, ModuleType] = {}

    @classmethod
    def installed(cls) -> "Plugins":
        """Return all plugins that installed distributions offer.

        ``KEDIT_DISABLE_PLUGINS=a,b`` leaves some out; ``KEDIT_TRACE=1`` reports every hook call on
        stderr. A plugin that cannot be used becomes a row with its problem and disturbs no other.
        """
        plugins = cls()
        if os.environ.get("KEDIT_TRACE", "0") not in ("", "0"):
            plugins._trace()
        disabled = {name.strip() for name in os.environ.get("KEDIT_DISABLE_PLUGINS", "").split(",")}
        by_name: dict[str, list[EntryPoint]] = defaultdict(list)
        for entry_point in entry_points(group=_GROUP):
            by_name[entry_point.name].append(entry_point)
        for name in sorted(by_name.keys() - disabled):
            plugins._load(name, by_name[name])
        return plugins

    def register(self, module: ModuleType, name: str = "", package: str = "") -> PluginRow:
        """Add a plugin module under a name and return its row.

        Args:
            module: the plugin.
            name: of its entry point; by default what ``method_info`` says, or the module's name.
            package: where it comes from.

        Raises:
            PluginConflictError: the name is taken.
            BrokenPluginError: a hook or argument is misspelt, or its card does not fit.
        """
        hooks = _hooks_of(module, self._manager)
        info = _info_of(module, name or module.__name__) if "method_info" in hooks else None
        name = name or (info.name if info else module.__name__)
        if name in self._rows:
            raise PluginConflictError(
                name, self._rows[name].package or name, package or module.__name__
            )
        problem = _problem_of(module, name, info, hooks, self._manager)
        if problem:
            raise BrokenPluginError(name, problem)
        try:
            self._manager.register(module, name=name)
        except pluggy.PluginValidationError as error:
            raise BrokenPluginError(name, str(error).splitlines()[-1].lower()) from None
        self._modules[name] = module
        self._rows[name] = PluginRow(name=name, package=package, info=info, hooks=hooks)
        return self._rows[name]

    def rows(self) -> tuple[PluginRow, ...]:
        """Return what is known of every installed plugin, broken ones too, by name."""
        return tuple(self._rows[name] for name in sorted(self._rows))

    def methods(self) -> tuple[str, ...]:
        """Return the names of the methods that can be used."""
        return tuple(row.name for row in self.rows() if row.info is not None)

    def info(self, method: str) -> MethodInfo:
        """Return the card of a method.

        Raises:
            UnknownMethodError: no plugin offers it.
            BrokenPluginError: its plugin cannot be used.
            PluginConflictError: two distributions claim the name.
        """
        row = self._rows.get(method)
        if row is not None and row.error is not None:
            raise row.error
        if row is None or row.info is None:
            raise UnknownMethodError(method, self.methods())
        return row.info

    def kind_of(self, method: str) -> Kind:
        """Return what the deltas of a method hold; raises as :meth:`info` does."""
        return self.info(method).kind

    def module(self, name: str) -> ModuleType:
        """Return the module of a plugin in use."""
        return self._modules[name]

    def call(self, hook: str, method: str, **arguments: Any) -> Any:
        """Call ``hook`` of one method: other methods are left out, wrappers and core's own stay."""
        self.info(method)
        others = [self._modules[name] for name in self.methods() if name != method]
        return self._manager.subset_hook_caller(hook, others)(**arguments)

    def call_one(self, hook: str, plugin: str, **arguments: Any) -> Any:
        """Call ``hook`` of one plugin, an observer too: all others but core's own are left out."""
        others = [module for name, module in self._modules.items() if name != plugin]
        return self._manager.subset_hook_caller(hook, others)(**arguments)

    def call_all(self, hook: str, **arguments: Any) -> Any:
        """Call ``hook`` of every plugin: the first answer of a firstresult hook, else all answers."""
        return getattr(self._manager.hook, hook)(**arguments)

    def _load(self, name: str, claims: list[EntryPoint]) -> None:
        package = " and ".join(sorted(_package_of(claim) for claim in claims))
        try:
            if len(claims) > 1:
                raise PluginConflictError(name, *sorted(_package_of(claim) for claim in claims)[:2])
            self.register(_imported(name, claims[0]), name, package)
        except (BrokenPluginError, PluginConflictError) as error:
            problem = error.problem if isinstance(error, BrokenPluginError) else str(error)
            self._rows[name] = PluginRow(name=name, package=package, problem=problem, error=error)

    def _trace(self) -> None:
        """Report each hook call, who answers it and how long it takes."""
        started: list[float] = []

        def before(
            hook: str, implementations: Sequence[pluggy.HookImpl], _: Mapping[str, Any]
        ) -> None:
            started.append(perf_counter())
            names = ", ".join(one.plugin_name for one in reversed(implementations))
            sys.stderr.write(f"{'  ' * (len(started) - 1)}{hook} -> {names or 'nobody'}\n")

        def after(outcome: pluggy.Result[Any], hook: str, *_: Any) -> None:
            seconds = perf_counter() - started.pop()
            result = outcome.exception or type(outcome.get_result()).__name__
            sys.stderr.write(f"{'  ' * len(started)}{hook} = {result!s} ({seconds:.3f} s)\n")

        self._manager.add_hookcall_monitoring(before, after)


def _imported(name: str, entry_point: EntryPoint) -> ModuleType:
    try:
        module = entry_point.load()
    # Whatever a stranger's import raises must stay his problem.
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(name, f"import fails: {type(error).__name__}: {error}") from error
    if not isinstance(module, ModuleType):
        raise BrokenPluginError(name, f"{entry_point.value!r} is not a module")
    return module


def _package_of(entry_point: EntryPoint) -> str:
    return (
        f"{entry_point.dist.name} {entry_point.dist.version}"
        if entry_point.dist
        else entry_point.value
    )


def _hooks_of(module: ModuleType, manager: pluggy.PluginManager) -> tuple[str, ...]:
    return tuple(
        name for name in dir(module) if manager.parse_hookimpl_opts(module, name) is not None
    )


def _known(manager: pluggy.PluginManager) -> list[str]:
    return [name for name in vars(manager.hook) if not name.startswith("_")]


def _info_of(module: ModuleType, name: str) -> MethodInfo:
    try:
        info = module.method_info()
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(name, f"method_info fails: {error}") from error
    if not isinstance(info, MethodInfo):
        raise BrokenPluginError(name, f"method_info returns {info!r}, not a MethodInfo")
    return info


def _problem_of(  # noqa: PLR0911 - one line a rule
    module: ModuleType,
    name: str,
    info: MethodInfo | None,
    hooks: Iterable[str],
    manager: pluggy.PluginManager,
) -> str:
    """Return why this module must not be registered, or nothing.

    It is looked at before registering: once a bad implementation is in, pluggy's ``check_pending``
    fails for the good ones too.
    """
    if manager.has_plugin(name):
        return f"the name {name!r} is core's own"
    if manager.is_registered(module):
        return f"its module is in use as {manager.get_name(module)!r} already"
    unmarked = [] if hooks else [hook for hook in _known(manager) if hook in vars(module)]
    if unmarked:
        return f"nothing in it is marked with @hookimpl, not even {' or '.join(unmarked)}"
    if info is not None and info.name != name:
        return f"its entry point is {name!r} but method_info says {info.name!r}"
    if info is not None and info.api != API:
        return f"it speaks version {info.api} of the hook contract, this core speaks {API}"
    for hook in hooks:
        problem = _hook_problem(getattr(module, hook), hook, info, manager)
        if problem:
            return problem
    if info is not None and "compute_delta" not in hooks:
        return "it names a method but implements no compute_delta"
    return ""


def _hook_problem(  # noqa: PLR0911 - one line a rule
    function: Any, hook: str, info: MethodInfo | None, manager: pluggy.PluginManager
) -> str:
    specification = getattr(hookspecs, hook, None)
    options = getattr(function, f"{_GROUP}_impl", {})
    known = _known(manager)
    if specification is None or hook not in known:
        return f"unknown hook {hook!r}{did_you_mean(hook, known)}"
    arguments = list(inspect.signature(specification).parameters)
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument not in arguments:
            return f"{hook} has no argument {argument!r}{did_you_mean(argument, arguments)}"
        if parameter.default is not inspect.Parameter.empty:
            return f"{hook} gives {argument!r} a default, so it would never be passed"
        if parameter.kind is parameter.KEYWORD_ONLY:
            return f"{hook} takes {argument!r} by keyword only, so it would never be passed"
    if options.get("wrapper") or options.get("hookwrapper"):
        yields = inspect.isgeneratorfunction(function)
        return "" if yields else f"{hook} is a wrapper that is no generator function"
    if getattr(specification, f"{_GROUP}_spec", {}).get("firstresult"):
        if inspect.isgeneratorfunction(function):
            return f"{hook} is a generator function: it is never None and would shadow all others"
        if info is None and hook in _METHODS_ONLY:
            return f"{hook} belongs to methods, and this plugin has no method_info"
    return ""
