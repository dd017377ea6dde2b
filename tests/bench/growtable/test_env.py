"""``esper/GrowTable-v0``: a proper Gymnasium environment, laid out as ``esper/Grow-v0`` is."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from made_up_tables import FEW, made_up_host
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from esper.bench.growtable.env import ENV_ID, GrowTableEnv
from esper.bench.growtable.host import SPACE
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.bench.growtable.worlds import WORLDS, task_of
from esper.leyline import Op, UsageError
from esper.simic.env import GrowEnv
from esper.tamiyo.masks import to_indices

TABLE = Table([made_up_host(0), made_up_host(1)], {})


def make(**options: Any) -> GrowTableEnv:
    env = gymnasium.make(ENV_ID, **{"table": TABLE, **options}).unwrapped
    assert isinstance(env, GrowTableEnv)
    return env


def test_checkers_find_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make())
        sb3_check_env(make())


def test_it_is_laid_out_as_the_real_one() -> None:
    real, env = GrowEnv(task=task_of(WORLDS["digits"])), make()
    assert env.observation_space == real.observation_space and env.action_space == real.action_space
    assert env.space == real.space


def test_what_the_masks_allow_is_held_but_for_pairs_of_heads() -> None:
    env = make(worlds=("digits",))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(40):
        _, info = env.reset()
        ended = False
        while not ended:
            assert np.array_equal(np.concatenate(info["action_mask"]).astype(bool), env.action_masks())
            held = env.node.held
            action = env.action_space.sample(info["action_mask"])
            _, _, ended, truncated, info = env.step(action)
            assert not truncated and info["illegal"] == ("why_not" in info)
            if action[0] == Op.WAIT:
                assert not info["illegal"] and held
    assert env.illegal_actions < 40


def test_an_action_that_no_table_holds_says_so() -> None:
    env = make()
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.array([Op.PRUNE, 0, 0, 0, 0, 0]))
    assert info["illegal"] and info["why_not"] == "no tabulated sequence does it next; WAIT instead"


@pytest.mark.parametrize("choices", FEW)
def test_the_return_is_the_objective_of_the_sequence(choices: Any) -> None:
    env = make()
    env.reset(seed=1)
    total, ended, epoch = 0.0, False, 0
    while not ended:
        action = next((c.action for c in choices if c.epoch == epoch), env.node.default)
        _, reward, ended, _, info = env.step(np.array(to_indices(SPACE, action)))
        total, epoch = total + reward, epoch + 1
    host, record = env.node.host, env.node.record
    assert record is host.records[choices]
    assert total == pytest.approx(value(host, record, test=False) - record.start_metric)
    assert info["objective"] == pytest.approx(value(host, record, test=False))


def test_a_reset_draws_among_the_hosts_and_a_seed_decides_which() -> None:
    env = make()
    env.reset(seed=0)
    assert {env.reset()[1]["host"] for _ in range(30)} == {0, 1}
    again = pickle.loads(pickle.dumps(make()))  # noqa: S301 - our own object, in this process
    assert env.reset(seed=5)[1]["host"] == again.reset(seed=5)[1]["host"]


def test_a_world_that_the_table_does_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown world of the table 'mnist1d'"):
        make(worlds=("mnist1d",))
    with pytest.raises(UsageError, match="holds no world of 'held-out'"):
        make(worlds="held-out")
