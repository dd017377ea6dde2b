"""Environments are known to Gymnasium wherever it is told of ``esper``, before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from esper._gymnasium import ENVIRONMENTS

IDS = f"assert set({list(ENVIRONMENTS)}) <= set(gymnasium.registry), gymnasium.registry\n"
LIGHT = "import sys; assert 'torch' not in sys.modules\n"
WAYS = {
    "Gymnasium first": "import gymnasium; import esper\n" + IDS,
    "Esper first": "import esper; import gymnasium.spaces; import gymnasium\n" + IDS,
    "a part of it first": "import esper; from gymnasium.vector import VectorEnv; import gymnasium\n" + IDS,
    "Esper alone": "import esper, sys; assert 'gymnasium' not in sys.modules\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_environments_are_registered(way: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", WAYS[way] + LIGHT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_gymnasium_esper_is_imported_all_the_same() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = None\nimport esper\ntry:\n import gymnasium\nexcept ImportError: pass\n"
    )
    code += "else: raise SystemExit('imported')\nassert esper.UsageError"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_of_sb3_that_never_imported_esper_make_it(start: str) -> None:
    keywords: dict[str, Any] = {"env_kwargs": {"worlds": "digits-frugal"}, "vec_env_kwargs": {"start_method": start}}
    envs = make_vec_env("esper:esper/GrowTable-v0", 2, seed=0, vec_env_cls=SubprocVecEnv, **keywords)
    try:
        assert envs.reset().shape == (2, *envs.observation_space.shape)  # type: ignore[union-attr,misc]
        _, _, _, infos = envs.step(np.zeros((2, 6), dtype=int))
        assert [info["epoch"] for info in infos] == [1, 1]  # type: ignore[index]
        assert np.stack(envs.env_method("action_masks")).any(axis=1).all()
    finally:
        envs.close()


@pytest.mark.slow
def test_workers_of_gymnasium_that_never_imported_esper_make_it() -> None:
    keywords = {"vector_kwargs": {"context": "spawn"}, "worlds": "digits-frugal"}
    envs = gymnasium.make_vec("esper/GrowTableFlat-v0", num_envs=2, vectorization_mode="async", **keywords)
    try:
        _, info = envs.reset(seed=0)
        assert info["action_mask"].shape == (2, envs.single_action_space.n)  # type: ignore[attr-defined]
        *_, info = envs.step(np.zeros(2, dtype=int))
        assert info["epoch"].tolist() == [1, 1]
    finally:
        envs.close()
