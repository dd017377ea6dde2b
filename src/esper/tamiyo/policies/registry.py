"""Policies by name, our own and third parties'.

A third party adds a policy by an entry point in the group ``esper.policies`` that names a callable returning one, or
gives ``"package.module:ATTRIBUTE"`` wherever a name is asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Final

from esper.leyline import Policy, UsageError, unknown
from esper.tamiyo.policies.heuristic import FrugalPolicy, HeuristicPolicy
from esper.tamiyo.policies.learned import SHIPPED, LearnedPolicy
from esper.tamiyo.policies.random import NurturedPolicy, RandomPolicy
from esper.tamiyo.policies.schedule import SchedulePolicy
from esper.tamiyo.policies.static import StaticPolicy

ENTRY_POINTS: Final = "esper.policies"
LEARNED: Final = ".safetensors"
"""How the name of a learned policy's file ends."""

Maker = Callable[..., Policy]

_MAKERS: Final = (StaticPolicy, RandomPolicy, NurturedPolicy, SchedulePolicy, HeuristicPolicy, FrugalPolicy)
BUILT_IN: Final = MappingProxyType[str, Maker](
    {maker.name: maker for maker in _MAKERS} | {SHIPPED: LearnedPolicy.shipped}
)


def policy_names() -> tuple[str, ...]:
    """Every name that :func:`make_policy` knows: the built-in ones, then third parties'."""
    return (*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in BUILT_IN))


def make_seeded(name: str, seed: int) -> Policy:
    """The policy ``name``; one that draws at random is given ``seed``."""
    draws = "seed" in inspect.signature(_find(name)).parameters
    return make_policy(name, seed=seed) if draws else make_policy(name)


def make_policy(name: str, **options: Any) -> Policy:
    """The policy ``name``, a learned one's file (``*.safetensors``), or ``"module:ATTRIBUTE"``, made with ``options``.

    Raises ``UsageError`` for an unknown name or option, or where what was found makes no policy.
    """
    maker = _find(name)
    try:
        taken = inspect.signature(maker).parameters
    except (TypeError, ValueError) as error:
        raise UsageError(f"policy {name!r} cannot be called: {error}") from error
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
        for option in options:
            if option not in taken:
                raise unknown(f"option of policy {name}", option, taken)
    policy = maker(**options)
    if not isinstance(policy, Policy):
        raise UsageError(f"policy {name!r} made a {type(policy).__name__}; it needs name, reset(specs), decide(views)")
    return policy


def _find(name: str) -> Maker:
    if name.endswith(LEARNED):
        return partial(LearnedPolicy.from_file, name)
    if ":" in name:
        return _resolve(name)
    if name in BUILT_IN:
        return BUILT_IN[name]
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return _resolve(point.value)
    raise unknown("policy", name, policy_names())


def _resolve(reference: str) -> Maker:
    module, _, attribute = reference.partition(":")
    try:
        maker: Maker = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"policy {reference!r} cannot be loaded: {error}") from error
    return maker
