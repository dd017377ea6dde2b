"""A policy that stable-baselines3 or sb3-contrib saved, as ``esper growtable score`` plays it.

Loading such a file runs what its author pickled into it, as importing a module of theirs would.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.leyline import DataError, MissingExtraError, UsageError
from esper.leyline.decoding import told

Choose = Callable[[npt.NDArray[np.float32], npt.NDArray[np.bool_]], int]
"""Observation and mask of ``esper/GrowTableFlat-v0`` -> number of the action."""


def loaded(path: Path, observations: int, actions: int) -> Callable[[], Choose]:
    """What begins an episode of the policy in ``path``; one that remembers begins anew. It is asked for its likeliest
    action, and told the mask where it takes one.

    Raises ``DataError`` for a file that holds none, ``UsageError`` for one that was trained in another environment.
    """
    try:
        from gymnasium.spaces import Box, Discrete
        from stable_baselines3.common.save_util import load_from_zip_file
    except ImportError as error:
        raise MissingExtraError(f"policy {path}, of stable-baselines3,", "sb3") from error
    try:
        data, parameters, _ = load_from_zip_file(path, device="cpu")
        if data is None:
            raise ValueError("it holds no settings")
        seen, acts = data["observation_space"], data["action_space"]
        make, settings = data["policy_class"], data["policy_kwargs"]
    except Exception as error:  # whatever a pickle raises
        raise DataError(f"policy {path}: not saved by stable-baselines3: {told(error)}") from error
    fits = isinstance(acts, Discrete) and acts.n == actions and isinstance(seen, Box) and seen.shape == (observations,)
    if not fits:
        raise UsageError(
            f"policy {path}: observes {told(seen)} and acts in {told(acts)}; esper/GrowTableFlat-v0 shows "
            f"{observations} numbers and takes {actions} actions"
        )
    try:
        policy = make(seen, acts, lambda _: 0.0, **settings)
        policy.load_state_dict(parameters["policy"])
        policy.set_training_mode(False)
    except Exception as error:
        raise DataError(f"policy {path}: cannot be put together: {told(error)}") from error
    masked = "action_masks" in signature(policy.predict).parameters

    def begin() -> Choose:
        memory: Any = None

        def choose(observation: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> int:
            nonlocal memory
            first = np.array([memory is None])
            told_too = {"action_masks": mask} if masked else {}
            action, memory = policy.predict(observation, memory, first, deterministic=True, **told_too)
            return int(action)

        return choose

    return begin
