"""The trainer's accounts by hand, and its state through a checkpoint and through a rollback."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import WAITING, losses

from esper.leyline import Blend, Decision, EnvSpec, FactoredAction, Op, TelemetryEvent, TelemetryEventType
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.tasks import get_task
from esper.tolaria.checkpoint import load_newest, save
from esper.tolaria.executor import Executor

CONV5 = Decision(FactoredAction(Op.GERMINATE, "block0", "conv5", Blend.LINEAR, 1.0, 3), "")


def executor(events: list[TelemetryEvent] | None = None, seed: int = 1) -> Executor:
    config = RunConfig()
    made = build_executor(workload(get_task("digits"), config), config, [].append if events is None else events.append)
    made.reset([EnvSpec(0, 0, seed, 40)])
    return made


def test_the_ledger_by_hand() -> None:
    run = executor()
    run.step([CONV5])
    losses(run, 1)
    trainer: Any = run.engine._envs[0].trainer  # type: ignore[attr-defined]
    train, validation = len(trainer.setup.splits["train"]), len(trainer.setup.splits["validation"])
    (seed,) = trainer.macs.inside.values()
    host = trainer.macs.forward - seed
    first, behind = 1 * 8 * 64, 8 * 8 * 16 + 8 * 8 * 4 + 4 * 80
    assert seed == 8 * 8 * 25 * 8 * 8 + 8 * 8 * 8 * 8, "a 5x5 and a 1x1 convolution of 8 channels on 8x8 pixels"
    assert host == first + behind, "three pointwise convolutions and the head"
    spent = run.engine.costs([0])[0].spent
    assert spent["train_forward_macs"] == 2 * train * host
    assert spent["train_backward_macs"] == 2 * train * (2 * host - first), "pixels ask for no gradient"
    assert spent["probe_macs"] == 2 * train * (3 * seed + 2 * behind)
    assert spent["validation_macs"] == 2 * validation * host
    assert spent["counterfactual_macs"] == 0, "its gate cannot pass so early"
    assert spent["discarded_seed_macs"] == spent["test_macs"] == spent["policy_macs"] == 0
    (result,) = [run.engine.evaluate([0], [({}, {"block0": 1.0})])]
    once = run.engine.costs([0])[0].spent["counterfactual_macs"]
    assert once == validation * (seed + behind) and result.paired.tolist() == [[validation, validation]]
    losses(run, 1)
    read_on = run.engine.costs([0])[0].spent["counterfactual_macs"] - once
    assert 0 < read_on <= validation * (host + seed + behind), "what is read on, with the host as it is beside it"
    run.step([Decision(FactoredAction(Op.PRUNE, "block0"), "")])
    assert run.engine.costs([0])[0].spent["discarded_seed_macs"] == spent["probe_macs"] * 3 // 2


def test_a_row_continues_bit_for_bit_from_a_checkpoint_in_a_fresh_engine(tmp_path: Path) -> None:
    run = executor()
    run.step([CONV5])
    losses(run, 3)
    state = run.engine.state(0)
    save(tmp_path, run.epoch, state["tensors"], state["plain"])
    expected = losses(run, 4)

    other = executor(seed=99)
    loaded = load_newest(tmp_path)
    other.engine.load(0, {"tensors": loaded.tensors, "plain": loaded.plain})
    assert losses(other, 4) == expected


@pytest.mark.parametrize("after", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_ten_losses_after_a_rollback_equal_those_after_the_good_state(after: int) -> None:
    clean, faulty = executor(), executor(events := [])
    for run in (clean, faulty):
        run.step([CONV5])
        losses(run, after)
    expected = losses(clean, 10)
    trainer: Any = faulty.engine._envs[0].trainer  # type: ignore[attr-defined]
    with torch.no_grad():
        next(iter(trainer.model.host_parameters())).view(-1)[0] = math.nan
    assert faulty.step([WAITING])[0].rolled_back
    assert losses(faulty, 10) == expected
    (rollback,) = [event.data for event in events if event.event_type is TelemetryEventType.GOVERNOR_ROLLBACK]
    assert (rollback["cause"], rollback["lost_epochs"]) == ("external", 1)
