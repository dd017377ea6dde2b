"""The configuration's choices reach the parts, and what cannot be chosen is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from esper.leyline import EnvSpec, UsageError
from esper.run.assembly import build_executor, trainer_config, workload
from esper.run.config import RunConfig
from esper.scripts.train import main
from esper.tasks import get_task
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.stacking import StackedEngine

FOREIGN = "own_blueprints:channel_gate"


def trained(**config: Any) -> Any:
    asked = RunConfig(device="cpu", **config)
    load = workload(tiny(8), asked)
    executor = build_executor(load, asked, lambda event: None, test=False)
    executor.reset([EnvSpec(0, 0, 1, 2)])
    return executor.engine.trainer(0).optimizer  # type: ignore[attr-defined]


def test_the_optimizers_own_parameters_reach_it() -> None:
    optimizer = trained(weight_decay=0.2, optimizer={"betas": [0.8, 0.9], "eps": 1e-6})
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert (optimizer.defaults["eps"], optimizer.defaults["weight_decay"]) == (1e-6, 0.2)
    usual = trained().defaults
    assert usual["betas"] == (0.9, 0.999) and usual["weight_decay"] == tiny(8).budget.weight_decay


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 1}, "unknown optimizer option 'beta'; did you mean 'betas'.* legal: amsgrad, betas"),
        ({"lr": 1}, "unknown optimizer option 'lr'"),
        ({"betas": [2.0, 0.9]}, "AdamW refuses them: Invalid beta parameter.*; legal: betas"),
        ({"betas": "high"}, "AdamW refuses them.*; legal: betas"),
    ],
)
def test_options_that_it_cannot_take_are_refused_with_the_legal_ones(options: dict[str, Any], says: str) -> None:
    config = RunConfig(device="cpu", optimizer=options)
    with pytest.raises(UsageError, match=says) as refused:
        trainer_config(workload(tiny(8), config), config)
    assert "\n" not in str(refused.value)


def test_a_third_partys_blueprint_may_be_chosen_beside_the_tasks_own() -> None:
    task = tiny(8)
    own = task.blueprints[0]
    assert workload(task, RunConfig(device="cpu", blueprints=(FOREIGN, own))).task.blueprints == (own, FOREIGN)
    assert workload(task, RunConfig(device="cpu", blueprints=(FOREIGN,))).task.blueprints == (FOREIGN,)
    with pytest.raises(UsageError, match="'own_blueprints:not_one' is a str"):
        workload(task, RunConfig(device="cpu", blueprints=("own_blueprints:not_one",)))
    with pytest.raises(UsageError, match="unknown blueprint 'nothing'"):
        workload(task, RunConfig(device="cpu", blueprints=(FOREIGN, "nothing")))


@pytest.mark.parametrize("kind", ["heuristic", "ppo"])
def test_a_third_partys_blueprint_grows_from_the_command_line(kind: str, tmp_path: Path) -> None:
    flags = ["--task", "tiny:tiny", "--blueprints", FOREIGN, "--device", "cpu", "--quiet"]
    more = {
        "heuristic": ["--policy", "random", "--compare", "static", "--episodes", "1", "--max-epochs", "6"],
        "ppo": ["--rounds", "1", "--envs", "2", "--episode-length", "4", "--cells", "8"],
    }
    assert main([kind, *flags, *more[kind], "--run-dir", str(tmp_path / "run")]) == 0
    journal = (tmp_path / "run" / "events-00001.jsonl").read_text()
    assert f'"{FOREIGN}"' in journal


def test_a_registered_blueprint_that_the_task_does_not_name_can_be_chosen() -> None:
    task = get_task("digits")
    assert "squeeze_excite" not in task.blueprints
    chosen = workload(task, RunConfig(device="cpu", blueprints=("squeeze_excite", "norm"))).task.blueprints
    assert chosen == ("norm", "squeeze_excite")
    with pytest.raises(UsageError, match="blueprint 'squeeze_excit'"):
        workload(task, RunConfig(device="cpu", blueprints=("squeeze_excit",)))


def test_environments_are_stacked_where_that_is_asked_for() -> None:
    asked = RunConfig(device="cpu", stack=True)
    executor = build_executor(workload(tiny(8), asked), asked, lambda event: None, test=False)
    assert isinstance(executor.engine, StackedEngine)
    usual = build_executor(workload(tiny(8), asked), RunConfig(device="cpu"), lambda event: None, test=False)
    assert type(usual.engine) is ModuleEngine
