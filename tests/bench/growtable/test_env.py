"""``esper/GrowTable-v0``: a proper Gymnasium environment, laid out as ``esper/Grow-v0`` is."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from clones import COPIES, go_on_alike
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_tables import FEW, made_up_host
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from esper.bench.growtable.env import ENV_ID, FLAT_ID, GrowTableEnv, GrowTableVectorEnv
from esper.bench.growtable.host import SPACE
from esper.bench.growtable.record import coded_action
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.bench.growtable.worlds import WORLDS, task_of
from esper.leyline import DataError, Op, UsageError
from esper.simic.env import GrowEnv
from esper.tamiyo.masks import to_indices

SHORT = WORLDS["mnist14"]
TABLE = Table([made_up_host(0), made_up_host(1), made_up_host(0, world=SHORT)], {})


def make(**options: Any) -> GrowTableEnv:
    env = gymnasium.make(ENV_ID, **{"table": TABLE, "worlds": "digits", **options}).unwrapped
    assert isinstance(env, GrowTableEnv)
    return env


@pytest.mark.parametrize("actions", ["heads", "joint"])
def test_checkers_find_nothing(actions: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(actions=actions))
        sb3_check_env(make(actions=actions))


def test_it_is_laid_out_as_the_real_one() -> None:
    real, env = GrowEnv(task=task_of(WORLDS["digits"])), make()
    assert env.observation_space == real.observation_space and env.action_space == real.action_space
    assert env.space == real.space and env.spec.max_episode_steps == real.length == 12
    assert make(worlds=("mnist14",)).spec.max_episode_steps == 9
    flat = gymnasium.make(FLAT_ID, table=TABLE)
    assert flat.action_space == gymnasium.spaces.Discrete(1 + 3 * 5 + 3 * 3), "no more than sequences can do"


def test_what_the_masks_allow_is_held_but_for_pairs_of_heads() -> None:
    env = make()
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(40):
        _, info = env.reset()
        ended = False
        while not ended:
            assert np.array_equal(info["action_mask"].astype(bool), env.action_masks())
            held = env.node.held
            action = env.action_space.sample(info["action_mask"])
            _, _, ended, truncated, info = env.step(action)
            assert not truncated and info["illegal"] == (env.why_not is not None)
            if action[0] == Op.WAIT:
                assert not info["illegal"] and held
    assert env.illegal_actions < 40


def test_of_whole_actions_the_mask_allows_what_is_held_and_no_more() -> None:
    env = make(actions="joint", worlds=("digits", "mnist14"))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(40):
        _, info = env.reset()
        ended = False
        while not ended:
            assert {env.actions.read(i) for i in np.flatnonzero(info["action_mask"])} == set(env.node.held)
            _, _, ended, _, info = env.step(env.action_space.sample(info["action_mask"]))
    assert env.illegal_actions == 0


def test_an_action_that_no_table_holds_says_so() -> None:
    env = make()
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.array([Op.PRUNE, 0, 0, 0, 0, 0]))
    assert info["illegal"] and env.why_not == "no tabulated sequence does it next; WAIT instead"


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


def test_a_reset_takes_the_world_and_the_host_that_are_asked_for() -> None:
    env = make(worlds=("digits", "mnist14"))
    for world, host in (("digits", 1), ("mnist14", 0), ("digits", 0)):
        for _ in range(4):
            _, info = env.reset(options={"world": world, "host": host})
            assert (env.worlds[info["world"]], info["host"]) == (world, host)
    assert {env.worlds[env.reset(options={"host": 0})[1]["world"]] for _ in range(20)} == {"digits", "mnist14"}
    with pytest.raises(UsageError, match="no host 1 in mnist14; legal: 0"):
        env.reset(options={"world": "mnist14", "host": 1})
    with pytest.raises(UsageError, match="unknown world of the environment 'digit'; did you mean 'digits'"):
        env.reset(options={"world": "digit"})
    with pytest.raises(UsageError, match="unknown option of reset 'seed'"):
        env.reset(options={"seed": 1})


DRAWS = st.lists(st.integers(0, 10**6), max_size=15)


@pytest.mark.parametrize("how", COPIES)
@settings(max_examples=15, deadline=None)
@given(before=DRAWS, after=DRAWS, seed=st.integers(0, 99), actions=st.sampled_from(["heads", "joint"]))
def test_a_copy_goes_on_as_the_environment_does(
    how: str, before: list[int], after: list[int], seed: int, actions: str
) -> None:
    env = GrowTableEnv(table=TABLE, worlds=("digits", "mnist14"), actions=actions)
    go_on_alike(env, how, before, after, seed)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_rows_of_the_vector_environment_are_single_environments(mode: str) -> None:
    worlds = ("digits", "mnist14")
    envs = gymnasium.make_vec(ENV_ID, num_envs=3, autoreset_mode=mode, table=TABLE, worlds=worlds)
    assert isinstance(envs.unwrapped, GrowTableVectorEnv)
    singles = [make(worlds=worlds) for _ in range(3)]
    seen, info = envs.reset(seed=5)
    assert np.array_equal(seen, np.stack([single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]))
    assert len(set(info["world"].tolist())) == 2, "episodes of two lengths"
    envs.action_space.seed(0)
    over = [False] * 3
    for _ in range(30):
        actions = envs.action_space.sample()
        seen, rewards, terminated, _, _ = envs.step(actions)
        for i, single in enumerate(singles):
            if mode == "NextStep" and over[i]:
                mine, reward, ended = single.reset()[0], 0.0, False
            else:
                mine, reward, ended, _, _ = single.step(actions[i])
            assert (rewards[i], terminated[i]) == (reward, ended)
            if ended and mode == "SameStep":
                mine, _ = single.reset()
            assert np.array_equal(seen[i], mine)
        over = terminated.tolist()
        masks = np.stack([single.action_masks() for single in singles])
        assert np.array_equal(envs.unwrapped.action_masks(), masks)


def test_a_reset_mask_and_options_go_together() -> None:
    envs = GrowTableVectorEnv(2, "DISABLED", table=TABLE, worlds=("digits", "mnist14"))
    envs.reset(seed=0)
    envs.step(np.zeros((2, 6), dtype=int))
    _, info = envs.reset(options={"reset_mask": np.array([False, True]), "world": "digits", "host": 1})
    assert info["_host"].tolist() == [False, True] and info["host"][1] == 1
    assert [host.view.epoch for host in envs.hosts if host.view] == [1, 0]


def test_whole_actions_say_all_that_the_stored_table_holds() -> None:
    table = GrowTableEnv(worlds=("digits", "mnist14-narrow"))
    steps = [record.steps for host in table.hosts for record in host.records.values()]
    codes = {
        tuple(map(int, row))
        for each in steps
        for row in np.stack([each[name][1:] for name in ("op", "op_slot", "op_blueprint")], axis=1)
    }
    assert {coded_action(*code) for code in codes} <= GrowTableEnv.sayable and len(codes) > 15


def test_a_world_that_the_table_does_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown world of the table 'mnist1d'"):
        make(worlds=("mnist1d",))
    with pytest.raises(UsageError, match="holds no world of 'held-out'"):
        make(worlds="held-out")
    with pytest.raises(DataError, match="nowhere.growtable: No such file"):
        make(table=Path("nowhere.growtable"))
    with pytest.raises(UsageError, match="unknown keyword of the environment 'world'; did you mean 'worlds'"):
        make(world="digits")


def test_environments_of_one_file_share_its_hosts() -> None:
    first, second = (GrowTableEnv(worlds="digits-frugal") for _ in range(2))
    assert all(a.records is b.records for a, b in zip(first.hosts, second.hosts, strict=True))
    clone = COPIES["deepcopy"](first)
    assert clone.hosts[0].records is first.hosts[0].records
