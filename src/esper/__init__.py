"""Esper grows neural networks while they train.

``import esper`` loads no torch: each public name is found on first use.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from esper._gymnasium import register_when_imported
from esper._version import __version__

if TYPE_CHECKING:
    from esper.bench.growtable.worlds import WorldSpec as WorldSpec
    from esper.delivery import GrowResult as GrowResult
    from esper.karn.tables import report as report
    from esper.kasmina.applied import apply as apply
    from esper.kasmina.blueprints import Blueprint as Blueprint
    from esper.kasmina.export import export as export
    from esper.kasmina.probe import Site as Site
    from esper.kasmina.reuse import as_before as as_before
    from esper.leyline import DataError as DataError
    from esper.leyline import EsperError as EsperError
    from esper.leyline import Metric as Metric
    from esper.leyline import UsageError as UsageError
    from esper.library import Budget as Budget
    from esper.library import Grower as Grower
    from esper.library import OwnChoices as OwnChoices
    from esper.library import Scored as Scored
    from esper.library import grow as grow
    from esper.tamiyo.policies import EnvPolicy as EnvPolicy
    from esper.tasks import TaskSpec as TaskSpec

PUBLIC: Final = MappingProxyType(
    {
        "Blueprint": "esper.kasmina.blueprints",
        "Budget": "esper.library",
        "DataError": "esper.leyline",
        "EnvPolicy": "esper.tamiyo.policies",
        "EsperError": "esper.leyline",
        "GrowResult": "esper.delivery",
        "Grower": "esper.library",
        "Metric": "esper.leyline",
        "OwnChoices": "esper.library",
        "Scored": "esper.library",
        "Site": "esper.kasmina.probe",
        "TaskSpec": "esper.tasks",
        "UsageError": "esper.leyline",
        "WorldSpec": "esper.bench.growtable.worlds",
        "apply": "esper.kasmina.applied",
        "as_before": "esper.kasmina.reuse",
        "export": "esper.kasmina.export",
        "grow": "esper.library",
        "report": "esper.karn.tables",
    }
)
"""Public name -> the module that has it."""

__all__ = [*PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'esper' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_imported()
