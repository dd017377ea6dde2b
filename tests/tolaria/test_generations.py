"""Slots that open again, in an env: optimizer, checkpoints, rollbacks, delivery and accounts, bit for bit."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import WAITING, losses

from esper.kasmina.export import compare
from esper.leyline import Blend, Decision, EnvSpec, FactoredAction, Op, SeedStage, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.simic.rewards import RewardInputs
from esper.tolaria import surgery
from esper.tolaria.checkpoint import load_newest, save
from esper.tolaria.executor import Executor
from esper.tolaria.legality import legal_slots
from esper.tolaria.trainer import Trainer
from toy import toy_task

SLOT = "block0"


def executor(
    events: list[TelemetryEvent] | None = None, generations: int = 3, max_seeds: int | None = None, **more: Any
) -> Executor:
    config = RunConfig(generations=generations, max_seeds=max_seeds)
    emit = [].append if events is None else events.append
    made = build_executor(workload(toy_task(), config), config, emit, **more)
    made.reset([EnvSpec(0, 0, 1, 40)])
    return made


def trainer_of(run: Executor) -> Trainer:
    found: Trainer = run.engine.trainer(0)  # type: ignore[attr-defined]
    return found


def germinate(run: Executor, blueprint: str = "conv3") -> None:
    run.step([Decision(FactoredAction(Op.GERMINATE, SLOT, blueprint, Blend.LINEAR, 1.0, 1), "")])


def put(run: Executor, stage: SeedStage) -> None:
    """The seed at ``stage`` and alpha 1 without asking gates, with weights that matter."""
    slot = trainer_of(run).model.slots[SLOT]
    assert slot.state is not None
    slot.state.enter(stage, run.epoch)
    slot.state.alpha = 1.0
    generator = torch.Generator().manual_seed(run.epoch)
    with torch.no_grad():
        for parameter in slot.seed_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def keep(run: Executor, blueprint: str = "conv3") -> None:
    """One generation: born, trained for an epoch, kept, and trained on for another, at the end of which it opens."""
    germinate(run, blueprint)
    put(run, SeedStage.FOSSILIZED)
    run.step([WAITING])


def bits(run: Executor) -> list[torch.Tensor]:
    """Weights of host and of the first seed, with all that the optimizer knows of them."""
    trainer = trainer_of(run)
    (_, first) = next(iter(trainer.model.parts.values()))
    parameters = [*trainer.model.host_parameters(), *first.seed.parameters()]
    entries = [trainer.optimizer.state[p] for p in parameters]
    return [*parameters, *(torch.as_tensor(each[key]) for each in entries for key in sorted(each))]


def test_training_goes_on_as_if_the_slot_had_not_opened() -> None:
    closed, opened = executor(generations=1), executor(generations=2)
    for run in (closed, opened):
        keep(run)
    stages = [run.engine.views([0])[0].slots[0].stage for run in (closed, opened)]
    assert stages == [SeedStage.FOSSILIZED, SeedStage.DORMANT]
    assert losses(closed, 3) == losses(opened, 3)
    assert all(map(torch.equal, bits(closed), bits(opened)))


def test_a_second_seed_behind_it_changes_nothing_of_host_and_first() -> None:
    alone, grown = executor(), executor()
    for run in (alone, grown):
        keep(run)
    germinate(grown)
    losses(alone, 1)
    assert losses(alone, 3) == losses(grown, 3)
    assert all(map(torch.equal, bits(alone), bits(grown)))
    first, second = surgery.seed_groups(trainer_of(grown).optimizer).values()
    assert first["lr"] < second["lr"], "each has the schedule of its own birth"
    with torch.no_grad():
        next(iter(trainer_of(alone).model.slots[SLOT].kept[0].parameters())).view(-1)[0] += 1e-3
    assert losses(alone, 1) != losses(grown, 1), "the mutant is seen"


def test_what_is_open_again_is_offered_and_counted() -> None:
    run = executor(generations=2, max_seeds=2)
    germinate(run)
    put(run, SeedStage.FOSSILIZED)
    (view,) = run.engine.views([0])
    assert SLOT not in legal_slots(view, Op.GERMINATE)
    before = view.seed_parameters
    run.step([WAITING])
    (view,) = run.engine.views([0])
    slot = view.slots[0]
    assert SLOT in legal_slots(view, Op.GERMINATE)
    assert (slot.generation, slot.live, view.live_seeds, view.seed_parameters) == (1, False, 1, before)
    assert RewardInputs.of(view, 0.0, None, None).stages.count(SeedStage.FOSSILIZED) == 1
    (cost,) = run.engine.costs([0])
    assert cost.total_parameters == cost.host_parameters + before
    germinate(run, "norm")
    (view,) = run.engine.views([0])
    assert view.live_seeds == 2 and legal_slots(view, Op.GERMINATE) == (), "two are alive, and that is the most"
    put(run, SeedStage.FOSSILIZED)
    losses(run, 2)
    assert run.engine.views([0])[0].slots[0].stage is SeedStage.FOSSILIZED, "it has kept as many as it may"


def test_a_run_goes_on_bit_for_bit_in_the_midst_of_the_second_generation(tmp_path: Path) -> None:
    run = executor()
    keep(run)
    germinate(run)
    losses(run, 1)
    state = run.state()
    save(tmp_path, run.epoch, state["tensors"], state["plain"])
    expected = losses(run, 3)
    other, loaded = executor(), load_newest(tmp_path)
    other.load({"tensors": loaded.tensors, "plain": loaded.plain})
    assert losses(other, 3) == expected
    assert all(map(torch.equal, bits(run), bits(other)))


def test_a_rollback_across_a_keep_takes_the_seed_out_of_what_was_kept() -> None:
    run = executor()
    germinate(run)
    put(run, SeedStage.HOLDING)
    losses(run, 1)
    good = run.engine.state(0)
    expected = losses(run, 4)

    run = executor()
    run.engine.load(0, good)
    (before,) = run.engine.views([0])
    put(run, SeedStage.FOSSILIZED)
    losses(run, 1)
    germinate(run, "norm")
    (kept,) = run.engine.views([0])
    assert kept.slots[0].generation == 1 and len(surgery.seed_groups(trainer_of(run).optimizer)) == 2
    spent = run.engine.costs([0])[0].spent
    run.engine.rewind(0, good)
    (after,) = run.engine.views([0])
    assert after.slots[0].generation == 0 and after.slots[0].stage is SeedStage.HOLDING
    assert after.slots[0].seed_id == before.slots[0].seed_id
    assert list(surgery.seed_groups(trainer_of(run).optimizer)) == [after.slots[0].seed_id]
    now = run.engine.costs([0])[0].spent
    assert now["total_macs"] == spent["total_macs"] and now["discarded_seed_macs"] > spent["discarded_seed_macs"]
    assert losses(run, 4) == expected


def test_a_panic_goes_back_to_the_second_generation_as_it_was() -> None:
    clean, faulty = executor(), executor()
    for run in (clean, faulty):
        keep(run)
        germinate(run)
        losses(run, 1)
    with torch.no_grad():
        next(trainer_of(faulty).model.slots[SLOT].kept[0].parameters()).view(-1)[0] = math.nan
    assert faulty.step([WAITING])[0].rolled_back, "what was kept is watched like the host"
    assert losses(faulty, 3) == losses(clean, 3)


def test_work_is_booked_for_every_generation() -> None:
    run = executor()
    keep(run)
    germinate(run)
    trainer = trainer_of(run)
    first, second = trainer.model.parts
    inside, ledger = trainer.macs.inside, trainer.ledger
    assert inside[first] == inside[second] > 0
    before, counted = dict(ledger.spent()), dict(ledger.of_seed)
    losses(run, 1)
    now, examples = ledger.spent(), len(trainer.setup.splits["train"])
    host = trainer.macs.forward - inside[first] - inside[second]
    assert now["train_forward_macs"] - before["train_forward_macs"] == examples * (host + inside[first])
    assert ledger.of_seed[first] - counted[first] == 3 * examples * inside[first]
    assert ledger.of_seed[second] - counted[second] == now["probe_macs"] - before["probe_macs"]
    validation = len(trainer.setup.splits["validation"])
    assert now["validation_macs"] - before["validation_macs"] == validation * (host + inside[first])
    run.step([Decision(FactoredAction(Op.PRUNE, SLOT), "")])
    assert first in ledger.of_seed and second not in ledger.of_seed


@pytest.mark.parametrize("deliver", ["last", "best"])
def test_an_episode_ends_with_all_that_was_kept(deliver: Any) -> None:
    events: list[TelemetryEvent] = []
    run = executor(events, deliver=deliver)
    keep(run)
    keep(run, "norm")
    germinate(run)
    run.finish()
    (end,) = [event for event in events if event.event_type is T.EPISODE_ENDED]
    delivered = {seed["seed_id"]: seed for seed in end.data["seeds"]}
    trainer = trainer_of(run)
    assert set(delivered) == set(trainer.model.parts) == set(surgery.seed_groups(trainer.optimizer))
    assert {seed["slot_id"] for seed in delivered.values()} == {SLOT}
    assert end.data["total_parameters"] == end.data["host_parameters"] + sum(
        s["parameters"] for s in delivered.values()
    )
    if deliver == "last":
        assert [(seed["blueprint"], seed["stage"]) for seed in delivered.values()] == [
            ("conv3", "FOSSILIZED"),
            ("norm", "FOSSILIZED"),
        ]
    plain = run.engine.materialise(0)
    assert compare(trainer.model.eval(), plain, trainer.sample).same


def test_the_best_network_comes_back_with_its_generations_and_what_is_known_of_them() -> None:
    run = executor()
    keep(run)
    germinate(run)
    put(run, SeedStage.HOLDING)
    losses(run, 1)
    trainer = trainer_of(run)
    ids, network, score = list(trainer.model.parts), run.engine.network(0), partial(run.engine.evaluate, [0], [({},)])
    expected = score()
    put(run, SeedStage.FOSSILIZED)
    losses(run, 1)
    germinate(run, "norm")
    assert len(trainer.model.parts) == 3
    known = [trainer.optimizer.state[p] for p in trainer.model.parts[ids[0]][1].seed.parameters()]
    run.engine.deliver(0, network, 4)
    found = score()
    assert (found.metric[0, 0], found.loss[0, 0]) == (expected.metric[0, 0], expected.loss[0, 0])
    assert list(trainer.model.parts) == list(surgery.seed_groups(trainer.optimizer)) == ids
    mine = [trainer.optimizer.state[p] for p in trainer.model.parts[ids[0]][1].seed.parameters()]
    assert all(one is other for one, other in zip(known, mine, strict=True))
    assert trainer.train_epoch().weights_finite
