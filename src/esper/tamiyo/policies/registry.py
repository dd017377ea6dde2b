"""Policies by name, our own and third parties'.

A third party adds a policy by an entry point in the group ``esper.policies`` that names a callable returning one, or
gives ``"package.module:ATTRIBUTE"`` wherever a name is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from esper.leyline import Policy, UsageError, load_attribute, plugins_in, unknown

ENTRY_POINTS: Final = "esper.policies"
LEARNED: Final = ".safetensors"
"""How the name of a learned policy's file ends."""

Maker = Callable[..., Policy]

_NEEDED: Final = "it needs name, reset(specs), decide(views)"

BUILT_IN: Final = MappingProxyType(
    {
        "static": "esper.tamiyo.policies.static:StaticPolicy",
        "random": "esper.tamiyo.policies.random:RandomPolicy",
        "nurtured": "esper.tamiyo.policies.random:NurturedPolicy",
        "schedule": "esper.tamiyo.policies.schedule:SchedulePolicy",
        "heuristic": "esper.tamiyo.policies.heuristic:HeuristicPolicy",
        "frugal": "esper.tamiyo.policies.heuristic:FrugalPolicy",
        "promise": "esper.tamiyo.policies.promise:PromisePolicy",
        "auto": "esper.tamiyo.policies.auto:AutoPolicy",
        "esper-v1": "esper.tamiyo.policies.learned:LearnedPolicy.shipped",
        "esper-v2": "esper.tamiyo.policies.learned:LearnedPolicy.reader",
    }
)
"""Name -> ``module:attribute`` of what makes the policy: loaded when it is asked for, so that names cost no torch."""


def policy_names() -> tuple[str, ...]:
    """Every name that :func:`make_policy` knows: the built-in ones, then third parties'."""
    return (*BUILT_IN, *plugins_in(ENTRY_POINTS, BUILT_IN))


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
        raise UsageError(f"policy {name!r} made a {type(policy).__name__}; {_NEEDED}")
    return policy


def chosen_policy(policy: str | Policy) -> Policy:
    """The policy of that name (:func:`make_policy`), or the one given. Raises ``UsageError`` for what is neither."""
    if isinstance(policy, str):
        return make_policy(policy)
    if isinstance(policy, type) or not isinstance(policy, Policy):
        what = f"the class {policy.__name__}" if isinstance(policy, type) else f"a {type(policy).__name__}"
        raise UsageError(f"policy is {what}; legal: a name, or an object of your own; {_NEEDED}")
    return policy


def _find(name: str) -> Maker:
    if name.endswith(LEARNED):
        return partial(load_attribute("policy", "esper.tamiyo.policies.learned:LearnedPolicy.from_file"), name)
    others = plugins_in(ENTRY_POINTS, BUILT_IN)
    if name in others:
        reference = others[name].value
    elif name in BUILT_IN or ":" in name:
        reference = BUILT_IN.get(name, name)
    else:
        raise unknown("policy", name, policy_names())
    maker: Maker = load_attribute("policy", reference)
    return maker
