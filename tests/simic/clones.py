"""Whether a copy of an environment goes on exactly as it does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),  # noqa: S301 - our own object, in this process
}


def same(a: Any, b: Any) -> bool:
    """Bit for bit; a NaN is a NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and a != a:
        return bool(b != b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def legal_choice(env: Any, draw: int) -> Any:
    """Choices that the masks allow, the same for the same draw."""
    masks = env.action_masks()
    if env.action_space.shape == ():
        return int(np.flatnonzero(masks)[draw % masks.sum()])
    parts = np.split(masks, np.cumsum(env.action_space.nvec)[:-1])
    return np.array([np.flatnonzero(part)[(draw // 7**i) % part.sum()] for i, part in enumerate(parts)])


def go_on_alike(env: Any, how: str, before: list[int], after: list[int], seed: int) -> None:
    """Copy ``env`` after the actions ``before``; then both do ``after``, over the ends of episodes."""
    env.reset(seed=seed)
    for draw in before:
        if env.step(legal_choice(env, draw))[2]:
            env.reset()
    clone = COPIES[how](env)
    assert clone is not env and clone.illegal_actions == env.illegal_actions and clone.why_not == env.why_not
    assert same(clone.action_masks(), env.action_masks())
    for draw in after:
        action = legal_choice(env, draw)
        answer = env.step(action)
        assert same(answer, clone.step(action)), (how, before, after, seed)
        assert same(clone.action_masks(), env.action_masks()) and clone.why_not == env.why_not
        if answer[2]:
            assert same(env.reset(), clone.reset())
    assert same(env.action_space.sample(), clone.action_space.sample())
