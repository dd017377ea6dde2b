"""Policies that need no training, and the registry of all policies by name."""

from esper.tamiyo.policies.base import RowPolicy
from esper.tamiyo.policies.heuristic import FrugalPolicy, HeuristicConfig, HeuristicPolicy
from esper.tamiyo.policies.random import NurturedPolicy, RandomPolicy
from esper.tamiyo.policies.registry import ENTRY_POINTS, make_policy, make_seeded, policy_names
from esper.tamiyo.policies.schedule import Entry, SchedulePolicy
from esper.tamiyo.policies.static import StaticPolicy

__all__ = [
    "ENTRY_POINTS",
    "Entry",
    "FrugalPolicy",
    "HeuristicConfig",
    "HeuristicPolicy",
    "NurturedPolicy",
    "RandomPolicy",
    "RowPolicy",
    "SchedulePolicy",
    "StaticPolicy",
    "make_policy",
    "make_seeded",
    "policy_names",
]
