"""Policies that need no training, and the registry of all policies by name.

Importing this loads no torch: what is named here is found on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from esper.tamiyo.policies.registry import ENTRY_POINTS, chosen_policy, make_policy, make_seeded, policy_names

if TYPE_CHECKING:
    from esper.tamiyo.policies.auto import AutoConfig, AutoPolicy
    from esper.tamiyo.policies.base import EnvPolicy
    from esper.tamiyo.policies.heuristic import FrugalPolicy, HeuristicConfig, HeuristicPolicy
    from esper.tamiyo.policies.promise import PromisePolicy
    from esper.tamiyo.policies.random import NurturedPolicy, RandomPolicy
    from esper.tamiyo.policies.schedule import Entry, SchedulePolicy
    from esper.tamiyo.policies.static import StaticPolicy

__all__ = [
    "ENTRY_POINTS",
    "AutoConfig",
    "AutoPolicy",
    "Entry",
    "FrugalPolicy",
    "HeuristicConfig",
    "HeuristicPolicy",
    "NurturedPolicy",
    "PromisePolicy",
    "RandomPolicy",
    "EnvPolicy",
    "SchedulePolicy",
    "StaticPolicy",
    "chosen_policy",
    "make_policy",
    "make_seeded",
    "policy_names",
]

_MODULES = {
    "AutoConfig": "auto",
    "AutoPolicy": "auto",
    "EnvPolicy": "base",
    "FrugalPolicy": "heuristic",
    "HeuristicConfig": "heuristic",
    "HeuristicPolicy": "heuristic",
    "NurturedPolicy": "random",
    "PromisePolicy": "promise",
    "RandomPolicy": "random",
    "Entry": "schedule",
    "SchedulePolicy": "schedule",
    "StaticPolicy": "static",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
