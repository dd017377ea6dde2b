"""PPO runs on hosts whose epochs take milliseconds; the events that a run causes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny

from esper.leyline import ActionSpace, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.wire import decode, encode
from esper.run.assembly import FORGIVING, build_executor, workload
from esper.run.config import RunConfig
from esper.simic import rewards
from esper.simic.detectors import DetectorConfig
from esper.simic.env import GrowConfig
from esper.simic.mdp import GrowthMDP, MDPConfig
from esper.simic.ppo import PPOConfig
from esper.simic.rewards import Change, RewardConfig
from esper.simic.vectorized import PPOPlan, PPORun, fresh_network
from esper.simic.workers import WorkerPool


def test_throughput_metrics_include_fps():
    from unittest.mock import Mock

    from esper.simic import vectorized

    hub = Mock()
    vectorized._emit_throughput(
        hub=hub,
        env_id=0,
        batch_idx=1,
        episodes_completed=4,
        step_time_ms=20.0,
        dataloader_wait_ms=2.0,
    )
    data = hub.emit.call_args[0][0].data
    assert data["fps"] == 50.0


@pytest.mark.parametrize("step_time_ms", [0.0, -1.0, 1e-320])
def test_no_rate_follows_from_no_time(step_time_ms: float) -> None:
    from esper.simic import vectorized

    hub = Journal()
    vectorized._emit_throughput(hub, 3, 1, 4, step_time_ms, 0.0)
    (event,) = hub.events
    assert event.env_id == 3 and event.data["fps"] is None
    assert b"fps" not in encode(event)


class Journal:
    """Keeps events, each of which must survive the wire."""

    def __init__(self) -> None:
        self.events: list[TelemetryEvent] = []

    def emit(self, event: TelemetryEvent) -> None:
        decode(encode(event))
        self.events.append(event)

    def of(self, kind: str | T) -> list[TelemetryEvent]:
        return [event for event in self.events if kind in (event.event_type, event.data.get("kind"))]


def make(
    plan: PPOPlan, epochs: int = 5, reward: RewardConfig | None = None, examples: int = 64
) -> tuple[PPORun, Journal]:
    mdp, space = GrowConfig(task=tiny(epochs, examples), reward=reward or RewardConfig(), gamma=plan.ppo.gamma).mdp()
    journal = Journal()
    return PPORun(mdp, space, fresh_network(plan.seed, cells=16), plan, journal), journal


@pytest.fixture(scope="module")
def run_and_journal() -> Iterator[tuple[PPORun, Journal]]:
    run, journal = make(PPOPlan(rounds=2, envs=3, seed=4))
    run.run()
    yield run, journal


def test_a_run_says_everything_it_did(run_and_journal: tuple[PPORun, Journal]) -> None:
    run, journal = run_and_journal
    assert run.environments.actions == 2 * 3 * 5 and run.environments.illegal == 0
    assert len(journal.of("last_action")) == len(journal.of(T.REWARD_COMPUTED)) == 30
    assert {event.env_id for event in journal.of("throughput")} == {0, 1, 2}
    assert [event.data["round"] for event in journal.of(T.PPO_UPDATE_COMPLETED)] == [1, 2]
    assert len(journal.of("action_distribution")) == len(journal.of("mask_hit_rates")) == 2
    assert len(journal.of("reward_summary")) == 6


def test_updates_hold_the_vitals(run_and_journal: tuple[PPORun, Journal]) -> None:
    _, journal = run_and_journal
    for event in journal.of(T.PPO_UPDATE_COMPLETED):
        assert {"lr", "grad_norm", "update_time_ms", "policy_loss", "value_loss", "kl"} <= event.data.keys()
        assert event.data["stale_log_prob"] < 1e-5 and event.data["steps"] == 15
        assert event.data["heads"]["op"]["entropy"] > 0
    first, second = (event.data["lr"] for event in journal.of(T.PPO_UPDATE_COMPLETED))
    assert second < first


def test_the_policys_own_arithmetic_is_on_the_bill(run_and_journal: tuple[PPORun, Journal]) -> None:
    run, journal = run_and_journal
    c = run.network.config
    slots, blueprints, ops, others = 2, 3, 6, sum(c.other_choices)
    encoder = slots * (c.slot_width + 2 * c.embedding) * c.token + (c.host_width + 2 * c.token) * c.features
    encoder += slots * blueprints * (c.embedding + c.cost_width) * c.token
    memories = 2 * 4 * c.cells * (c.features + c.cells)
    value = c.cells * c.cells + c.cells
    heads = c.cells * ops + c.cells * ops * c.token + slots * c.token * c.token + ops * c.token * slots
    places = c.cells * c.token + 2 * slots * c.token * c.token + slots * blueprints * c.token + slots * c.token * others
    one = encoder + memories + value + heads + places
    assert run.environments.acting_macs == one
    for event in journal.of(T.PPO_UPDATE_COMPLETED):
        assert event.data["acting_macs"] == 15 * one
        passes = 3 * event.data["optimizer_steps"]
        assert passes * 15 * one < event.data["update_macs"] < (passes + 2) * 15 * one


def test_throughput_is_each_environments_own(run_and_journal: tuple[PPORun, Journal]) -> None:
    _, journal = run_and_journal
    events = journal.of("throughput")
    assert all(event.data["fps"] == 1000.0 / event.data["step_time_ms"] for event in events)
    assert len({event.data["step_time_ms"] for event in events}) == len(events)
    assert [event.data["episodes_completed"] for event in events] == [3] * 3 + [6] * 3


def test_actions_rewards_and_masks_add_up(run_and_journal: tuple[PPORun, Journal]) -> None:
    _, journal = run_and_journal
    said = journal.of("last_action")
    for number, distribution in enumerate(journal.of("action_distribution")):
        ops = distribution.data["ops"]
        mine = [event.data["op"] for event in said[15 * number : 15 * (number + 1)]]
        assert ops == {op: mine.count(op) for op in set(mine)} and sum(ops.values()) == 15
        rates = journal.of("mask_hit_rates")[number].data
        assert rates["consumed"]["op"] == 15 and rates["restricted"]["op"] == 1.0
        for head, share in rates["restricted"].items():
            assert rates["forced"][head] <= share <= 1.0
    for event in said:
        assert event.data["masked"].keys() >= {"op"} and ("slot" in event.data) == ("slot" in event.data["masked"])
    for event in journal.of("reward_summary"):
        assert event.data["episode_return"] == pytest.approx(sum(event.data["components"].values()))
        assert event.data["episode_return"] == pytest.approx(event.data["objective_gain"])


def test_the_same_seed_gives_the_same_run(run_and_journal: tuple[PPORun, Journal]) -> None:
    _, journal = run_and_journal
    run, again = make(PPOPlan(rounds=2, envs=3, seed=4))
    run.run()
    clock = ("update_time_ms", "step_time_ms", "dataloader_wait_ms", "fps")

    def essence(events: list[TelemetryEvent]) -> list[Any]:
        return [(event.event_type, {k: v for k, v in event.data.items() if k not in clock}) for event in events]

    assert essence(journal.events) == essence(again.events)


def test_no_illegal_action_in_ten_thousand() -> None:
    run, _ = make(PPOPlan(rounds=1, envs=2))
    from esper.simic.growth import GrowthEnvironments
    from esper.tamiyo.batch import mask_tables, observe
    from esper.tamiyo.distribution import FactoredDistribution
    from esper.tamiyo.masks import to_action
    from esper.tolaria.legality import why_illegal

    views = []
    environments: GrowthEnvironments = run.environments

    class Checkpointer:
        def step(self, played: Any) -> None:
            views.extend(outcome.view for outcome in played.outcomes if not outcome.ended)

    environments._watcher = Checkpointer()
    from esper.simic.collect import Collector

    Collector(environments, run.network, 1.0, 0).collect(5)
    space, generator = environments.space, torch.Generator().manual_seed(0)
    checked = 0
    while checked < 10_000:
        batch = views * 100
        output, _ = run.network.step(
            observe(batch, space, run.network.config),
            run.network.initial_state(len(batch)),
            torch.ones(len(batch), dtype=torch.bool),
        )
        with torch.no_grad():
            distribution = FactoredDistribution(environments.heads, output.logits, mask_tables(batch, space))
            actions, _ = distribution.sample(torch.rand(len(batch), len(environments.heads), generator=generator))
        for view, indices in zip(batch, actions.tolist(), strict=True):
            assert why_illegal(view, to_action(space, indices)) is None
        checked += len(batch)


def detected(journal: Journal) -> set[T]:
    return {event.event_type for event in journal.events if event.event_type.name.endswith(("DETECTED", "SUSPECTED"))}


def test_too_large_steps_are_noticed() -> None:
    wild = PPOConfig(learning_rate=1.0, epochs=8, target_kl=None, max_grad_norm=1e6)
    run, journal = make(PPOPlan(rounds=1, envs=3, ppo=wild))
    run.run()
    assert T.RATIO_EXPLOSION_DETECTED in detected(journal) or T.RATIO_COLLAPSE_DETECTED in detected(journal)
    every = DetectorConfig(ratio_high=0.5, ratio_low=2.0)
    run, journal = make(PPOPlan(rounds=1, envs=3, detectors=every))
    run.run()
    assert {T.RATIO_EXPLOSION_DETECTED, T.RATIO_COLLAPSE_DETECTED} <= detected(journal)


def test_a_decided_head_a_useless_value_and_trends_are_noticed() -> None:
    keen = DetectorConfig(
        explained_variance=2.0, value_rounds=2, head_share=2.0, head_rounds=2, trend_rounds=2, plateau_errors=1e9,
        trend_errors=1e12, slow_factor=0.0, slow_rounds=2, memory_share=0.0,
    )  # fmt: skip
    run, journal = make(PPOPlan(rounds=4, envs=2, detectors=keen), epochs=3)
    run.run()
    names = {event.event_type for event in journal.events}
    assert {
        T.VALUE_COLLAPSE_DETECTED,
        T.HEAD_COLLAPSE_DETECTED,
        T.PLATEAU_DETECTED,
        T.MEMORY_WARNING,
        T.PERFORMANCE_DEGRADATION,
    } <= names
    assert len(journal.of(T.MEMORY_WARNING)) == 1, "a finding that lasts is said once"


@pytest.mark.parametrize(("slope", "kind"), [(5.0, T.IMPROVEMENT_DETECTED), (-5.0, T.DEGRADATION_DETECTED)])
def test_a_policy_that_moves_is_noticed(slope: float, kind: T, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts whose starting point moves from round to round: what the objective gains follows."""
    run, journal = make(PPOPlan(rounds=4, envs=2, detectors=DetectorConfig(trend_rounds=2)), epochs=2)
    begin = run.environments.mdp.pool.begin

    def shifted(specs: Any) -> Any:
        return [replace(row, metric=row.metric - slope * 10.0 * run.rounds_done) for row in begin(specs)]

    monkeypatch.setattr(run.environments.mdp.pool, "begin", shifted)
    run.run()
    assert kind in detected(journal)


def test_a_reward_that_can_be_farmed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def bounty(change: Change) -> dict[str, float]:
        return {"bounty": 10.0}

    monkeypatch.setitem(rewards.MODES, "bounty", bounty)
    run, journal = make(PPOPlan(rounds=1, envs=3), reward=RewardConfig(mode="bounty"))
    run.run()
    (event,) = journal.of(T.REWARD_HACKING_SUSPECTED)
    assert event.data["measured"] > event.data["threshold"]
    run, journal = make(PPOPlan(rounds=1, envs=3))
    run.run()
    assert not journal.of(T.REWARD_HACKING_SUSPECTED)


def test_an_unstable_update_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run, journal = make(PPOPlan(rounds=1, envs=2), epochs=3)
    update = run.learner.update

    def poisoned(rollout: Any, scale: float) -> Any:
        return update(replace(rollout, rewards=rollout.rewards * 1e38 * 1e30), scale)

    monkeypatch.setattr(run.learner, "update", poisoned)
    run.run()
    assert journal.of(T.NUMERICAL_INSTABILITY_DETECTED)


def test_a_host_that_breaks_is_rolled_back_and_the_run_goes_on() -> None:
    journal = Journal()
    config = RunConfig(max_epochs=4, device="cpu")
    load = workload(tiny(4), config)
    pool = WorkerPool.here(
        lambda emit: build_executor(load, config, emit, governor=FORGIVING, test=False), journal.emit
    )
    mdp = GrowthMDP(pool, load.task.metric, MDPConfig(4))
    space = ActionSpace(tuple(load.task.sites), load.task.blueprints)
    run = PPORun(mdp, space, fresh_network(0, cells=8), PPOPlan(rounds=1, envs=2), journal)
    step = mdp.step

    def sabotaged(*given: Any) -> Any:
        if pool.epoch == 2:
            (here,) = pool.workers
            with torch.no_grad():
                trainer = here.share.executor.engine._envs[1].trainer  # type: ignore[attr-defined]
                next(trainer.model.host_parameters()).fill_(float("nan"))
        return step(*given)

    mdp.step = sabotaged  # type: ignore[method-assign]
    (report,) = run.run()
    (panic,), (rollback,) = journal.of(T.GOVERNOR_PANIC), journal.of(T.GOVERNOR_ROLLBACK)
    assert panic.env_id == rollback.env_id == 1 and panic.epoch == 3
    assert panic.data["device"] == rollback.data["device"] == "cpu"
    assert panic.data["consecutive_panics"] == rollback.data["consecutive_panics"] == 1
    assert [event.data["rolled_back"] for event in journal.of(T.REWARD_COMPUTED) if event.env_id == 1][2]
    assert math.isfinite(report.mean_return) and report.mean_return == pytest.approx(report.mean_gain)
    assert journal.of(T.COUNTERFACTUAL_COMPUTED) or journal.of(T.COMMAND_ISSUED)


def test_the_learners_discount_must_be_the_rewards() -> None:
    mdp, space = GrowConfig(task=tiny(), gamma=0.9).mdp()
    with pytest.raises(UsageError, match="gamma"):
        PPORun(mdp, space, fresh_network(0), PPOPlan(1, 1), Journal())


def test_hosts_come_round_again() -> None:
    from esper.simic.growth import Hosts

    pool = Hosts(rows=4, seed=0, pool=6)
    assert len({seed for episode in range(9) for seed in pool.seeds(episode)}) == 6
    fresh = Hosts(rows=4, seed=0)
    assert len({seed for episode in range(9) for seed in fresh.seeds(episode)}) == 36


@pytest.mark.slow
def test_a_policy_learns_to_grow() -> None:
    """Hosts that can only guess, and a blueprint that cannot: paid relative to the static host of the same seed."""
    plan = PPOPlan(rounds=20, envs=8, hosts=8, ppo=PPOConfig(learning_rate=1e-3, epochs=6, minibatches=2))
    run, _ = make(plan, epochs=10, reward=RewardConfig(control=True), examples=400)
    reports = run.run()
    first, last = (sum(r.mean_return for r in part) / 4 for part in (reports[:4], reports[-4:]))
    assert last > first + 8.0, (first, last)
    assert run.environments.illegal == 0
