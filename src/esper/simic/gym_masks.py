"""Where the masks of a vector environment come from, through whatever wraps it.

Looked for, from the outermost layer inwards: ``action_masks()`` of the vector environment or of one of its wrappers; of
every member, or of a wrapper of it, here or in other processes; then ``info["action_mask"]``. What lies between the
masks and the learner must not change actions: masks would be of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from esper.leyline import UsageError

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

Source = Callable[[], Any]
"""One flat mask for each environment."""


def method_masks(envs: VectorEnv[Any, Any, Any]) -> Source | None:
    """``action_masks()``; ``None`` where nobody has it. Raises ``UsageError`` where actions are changed above it."""
    passed: list[type] = []
    for layer in _layers(envs):
        if hasattr(layer, "action_masks"):
            _require_unchanged(passed)
            return layer.action_masks  # type: ignore[no-any-return]
        passed.append(type(layer))
        base = layer
    above = _of_members(base)
    if above is None:
        return None
    _require_unchanged([*passed, *above])
    if members := getattr(base, "envs", None):
        return lambda: [member.get_wrapper_attr("action_masks")() for member in members]
    return lambda: base.call("action_masks")


def info_masks(envs: VectorEnv[Any, Any, Any], info: Any) -> bool:
    """Whether ``info`` has masks. Raises ``UsageError`` where actions are changed above the environments."""
    if not isinstance(info, dict) or "action_mask" not in info:
        return False
    *_, base = _layers(envs)
    kinds = [kind for member in getattr(base, "envs", ()) for kind in map(type, _layers(member))]
    specs = base.get_attr("spec") if not kinds and hasattr(base, "call_async") else ()
    _require_unchanged([*map(type, _layers(envs)), *kinds, *(kind for spec in specs for kind in _recorded(spec))])
    return True


def flat_masks(rows: Any, count: int, sizes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """``[N, sum of sizes]``. Raises ``UsageError`` for masks of another action space."""
    flat = [np.concatenate([np.ravel(head) for head in row]) if isinstance(row, tuple) else row for row in rows]
    lengths = sorted({np.size(row) for row in flat})
    if len(flat) != count or lengths != [sum(sizes)]:
        raise UsageError(
            f"{len(flat)} masks of {' and '.join(map(str, lengths))} choices; the action space asks for {count} of "
            f"{sum(sizes)}"
        )
    return np.stack([np.asarray(row, dtype=bool).ravel() for row in flat])


def _layers(env: Any) -> Iterator[Any]:
    """The environment and what it wraps, the outermost first."""
    import gymnasium
    from gymnasium.vector import VectorWrapper

    yield env
    while isinstance(env, (gymnasium.Wrapper, VectorWrapper)):
        env = env.env
        yield env


def _of_members(envs: Any) -> list[type] | None:
    """What lies above ``action_masks()`` in the members; ``None`` where not every member has it."""
    members = getattr(envs, "envs", None)
    if members:
        chains = [list(_layers(member)) for member in members]
        found = [next((i for i, layer in enumerate(chain) if hasattr(layer, "action_masks")), None) for chain in chains]
        if None in found:
            _require_none(found)
            return None
        return [type(layer) for chain, i in zip(chains, found, strict=True) for layer in chain[:i]]
    if not hasattr(envs, "call_async"):
        return None
    has = envs.call("has_wrapper_attr", "action_masks")
    if not all(has):
        _require_none([True if each else None for each in has])
        return None
    above: list[type] = []
    for spec in envs.get_attr("spec"):
        kinds = _recorded(spec)
        own = max((i for i, kind in enumerate(kinds) if hasattr(kind, "action_masks")), default=-1)
        above += kinds[own + 1 :]
    return above


def _require_none(found: Sequence[Any]) -> None:
    """Masks of some environments and not of others would be dropped."""
    if any(each is not None for each in found):
        without = [i for i, each in enumerate(found) if each is None]
        raise UsageError(f"environments {without} have no action_masks(), and the others do; all or none must have it")


def _recorded(spec: Any) -> list[type]:
    """Wrappers that a specification tells of, the innermost first."""
    places = [wrapper.entry_point.split(":") for wrapper in spec.additional_wrappers] if spec is not None else []
    return [getattr(import_module(module), name.partition("[")[0]) for module, name in places]


def _require_unchanged(kinds: Sequence[type]) -> None:
    import gymnasium
    from gymnasium.vector import VectorActionWrapper
    from gymnasium.wrappers import RepeatAction, StickyAction

    changing = (gymnasium.ActionWrapper, VectorActionWrapper, RepeatAction, StickyAction)
    for kind in kinds:
        if issubclass(kind, changing):
            raise UsageError(
                f"the masks are those of the actions below {kind.__name__}, which changes them; leave it out, or give "
                "the environment around it an action_masks() of its own"
            )
