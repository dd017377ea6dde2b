"""Policies that stable-baselines3 saved, as they are scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_tables import FEW, made_up_host

from esper.bench.growtable.entrants import entrant
from esper.bench.growtable.env import GrowTableEnv
from esper.bench.growtable.score import Tally, walk
from esper.bench.growtable.table import Table
from esper.leyline import DataError, UsageError

SMALL = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu", "seed": 0}


def env_of(actions: str = "joint") -> GrowTableEnv:
    return GrowTableEnv(table=Table([made_up_host(0)], {}), worlds="digits", actions=actions)


def test_one_that_takes_masks_does_nothing_illegal_and_what_its_author_sees(tmp_path: Path) -> None:
    from sb3_contrib import MaskablePPO

    env = env_of()
    model = MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=8, **SMALL)
    model.save(tmp_path / "p.zip")
    one, tally = entrant("x", str(tmp_path / "p.zip")), Tally()
    played = walk(made_up_host(0), tally.of(one.player)(made_up_host(0), 0)).sequences[0]
    assert one.policy is None and (tally.asked, tally.refused) == (12, 0) and played in FEW
    observation, _ = env.reset(seed=0)
    for _ in range(12):
        action, _ = model.predict(observation, action_masks=env.action_masks(), deterministic=True)
        observation, *_ = env.step(int(action))
    assert env.node.sequences[0] == played


def test_one_that_takes_none_is_counted(tmp_path: Path) -> None:
    from stable_baselines3 import DQN

    DQN("MlpPolicy", env_of(), buffer_size=10, **SMALL).save(tmp_path / "p.zip")
    one, tally = entrant("x", str(tmp_path / "p.zip")), Tally()
    walk(made_up_host(0), tally.of(one.player)(made_up_host(0), 0))
    assert tally.asked == 12 and tally.refused > 0


def test_what_is_none_or_of_another_environment_is_one_line(tmp_path: Path) -> None:
    from stable_baselines3 import A2C

    A2C("MlpPolicy", env_of("heads"), **SMALL).save(tmp_path / "heads.zip")
    with pytest.raises(UsageError, match="acts in MultiDiscrete.*esper/GrowTableFlat-v0 shows .* numbers and takes 25"):
        entrant("x", str(tmp_path / "heads.zip"))
    (tmp_path / "none.zip").write_text("not a zip")
    with pytest.raises(DataError, match="none.zip: not saved by stable-baselines3") as caught:
        entrant("x", str(tmp_path / "none.zip"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nowhere.zip': no such file"):
        entrant("x", "nowhere.zip")
