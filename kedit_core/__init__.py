"""kedit edits facts in language models, judges the edits, and takes every one of them out again.

Importing this package imports no torch: each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit_core.baseline import Baseline as Baseline
    from kedit_core.cache import TensorCache as TensorCache
    from kedit_core.deltas import Delta as Delta
    from kedit_core.deltas import Dense as Dense
    from kedit_core.deltas import LowRank as LowRank
    from kedit_core.deltas import Provenance as Provenance
    from kedit_core.deltas import SideMemory as SideMemory
    from kedit_core.editor import Editor as Editor
    from kedit_core.errors import KeditError as KeditError
    from kedit_core.export import Exported as Exported
    from kedit_core.export import export_lora as export_lora
    from kedit_core.export import export_merged as export_merged
    from kedit_core.forgetting import retention as retention
    from kedit_core.hookspecs import hookimpl as hookimpl
    from kedit_core.hookspecs import hookspec as hookspec
    from kedit_core.layout import ModelLayout as ModelLayout
    from kedit_core.layout import layout_of as layout_of
    from kedit_core.limits import Limits as Limits
    from kedit_core.methods import MethodInfo as MethodInfo
    from kedit_core.plans import Plan as Plan
    from kedit_core.plans import read_plan as read_plan
    from kedit_core.plugins import Plugins as Plugins
    from kedit_core.reports import Applied as Applied
    from kedit_core.reports import EvalReport as EvalReport
    from kedit_core.reports import Scope as Scope
    from kedit_core.reports import Score as Score
    from kedit_core.requests import EditBatch as EditBatch
    from kedit_core.requests import EditRequest as EditRequest
    from kedit_core.requests import Probe as Probe
    from kedit_core.run_reading import deltas_of as deltas_of
    from kedit_core.run_reading import read_run as read_run
    from kedit_core.runs import Run as Run
    from kedit_core.schedule import Schedule as Schedule
    from kedit_core.tokens import encode as encode
    from kedit_core.weights import Weights as Weights

__version__ = "0.1.0"

_HOMES = {
    "Applied": "reports",
    "Baseline": "baseline",
    "Delta": "deltas",
    "Dense": "deltas",
    "EditBatch": "requests",
    "EditRequest": "requests",
    "Editor": "editor",
    "EvalReport": "reports",
    "Exported": "export",
    "KeditError": "errors",
    "Limits": "limits",
    "LowRank": "deltas",
    "MethodInfo": "methods",
    "ModelLayout": "layout",
    "Plan": "plans",
    "Plugins": "plugins",
    "Probe": "requests",
    "Provenance": "deltas",
    "Run": "runs",
    "Schedule": "schedule",
    "Scope": "reports",
    "Score": "reports",
    "SideMemory": "deltas",
    "TensorCache": "cache",
    "Weights": "weights",
    "deltas_of": "run_reading",
    "encode": "tokens",
    "export_lora": "export",
    "export_merged": "export",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "layout_of": "layout",
    "read_plan": "plans",
    "read_run": "run_reading",
    "retention": "forgetting",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"kedit_core.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
