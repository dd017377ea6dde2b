"""Real runs of several worlds as one set of environments, and learning on in them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from esper.bench.growtable import play
from esper.bench.growtable import tune as tuning
from esper.bench.growtable.learn import LearnPlan
from esper.bench.growtable.play import executor_of
from esper.bench.growtable.real import RealEnvironments
from esper.bench.growtable.tune import Look, TunePlan, objective_of, tune
from esper.bench.growtable.worlds import HELD_OUT, WORLDS, WorldSpec
from esper.simic.collect import Collector
from esper.simic.rewards import RewardConfig
from esper.simic.vectorized import fresh_network
from esper.tamiyo.policies import StaticPolicy, make_policy
from esper.tamiyo.policies.learned import LearnedPolicy
from esper.tolaria.executor import Executor

SHORT = replace(WORLDS["digits-wide-short"], epochs=2, times=(0, 1))
LONG = replace(WORLDS["mnist1d"], epochs=3, times=(0, 1))


def test_rows_of_different_worlds_end_when_theirs_do_and_start_again_on_fresh_hosts() -> None:
    network = fresh_network(0, cells=8)
    environments = RealEnvironments([SHORT, LONG], 2, network.config, RewardConfig())
    collector = Collector(environments, network, 1.0, seed=5)
    first = [world.trackers[0].start.metric for world in environments._worlds]
    rollout, episodes = collector.collect(6)
    ends = [[step for step, over in enumerate(row) if over] for row in rollout.cuts.T.tolist()]
    assert ends == [[1, 3, 5], [1, 3, 5], [2, 5], [2, 5]]
    assert torch.equal(rollout.starts[1:], rollout.cuts[:-1]) and bool(rollout.starts[0].all())
    assert [episode.steps for episode in episodes if episode.environment == 2] == [3, 3]
    assert (rollout.discounts == 0).equal(rollout.cuts) and environments.host_macs > 0
    assert first != [world.trackers[0].start.metric for world in environments._worlds], "hosts are fresh ones"
    again = Collector(RealEnvironments([SHORT, LONG], 2, network.config, RewardConfig()), network, 1.0, seed=5)
    assert torch.equal(again.collect(6)[0].rewards, rollout.rewards), "and the same for the same seed"


def test_what_did_best_on_fresh_hosts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, shown = iter((50.0, 60.0, 55.0)), []

    def judge(policy: LearnedPolicy, worlds: object, hosts: int) -> tuple[float, int]:
        shown.append(copy.deepcopy(policy.network.state_dict()))
        return next(scores), 7

    monkeypatch.setattr(tuning, "objective_of", judge)
    plan = TunePlan(LearnPlan(updates=2, steps=2, minibatches=2), each=2, look_every=1)
    start, seen = fresh_network(0, cells=8), []

    def tell(look: Look) -> None:
        seen.append((look.update, look.objective))

    tuned = tune(start, [SHORT], plan, tell)
    assert seen == [(0, 50.0), (1, 60.0), (2, 55.0)] == [(look.update, look.objective) for look in tuned.looks]
    kept = tuned.network.state_dict()
    same = [all(torch.equal(part, kept[name]) for name, part in each.items()) for each in shown]
    assert same == [False, True, False]
    assert tuned.steps == 8 and tuned.macs > 3 * 7


def test_a_policy_s_worth_is_by_validation_and_its_hosts_are_counted() -> None:
    executors: list[Executor] = []

    def watched(world: WorldSpec, *, test: bool) -> Executor:
        executors.append(executor_of(world, test=test))
        return executors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(play, "executor_of", watched)
        objective, macs = objective_of(StaticPolicy(), [SHORT], 2)
    (executor,) = executors
    ends = executor.engine.evaluate(executor.envs, [({},), ({},)])
    assert objective == pytest.approx(float(ends.metric[:, 0].mean())), "nothing was kept, so there is no rent"
    spent = [cost.spent for cost in executor.engine.costs(executor.envs)]
    assert all(each["test_macs"] == 0 < each["validation_macs"] for each in spent) and macs > 0
    assert 0 < objective < 100 and objective_of(StaticPolicy(), [SHORT], 2) == (objective, macs)


@pytest.mark.slow
def test_the_shipped_policy_is_ahead_of_the_heuristic_on_held_out_hosts_that_no_score_has_seen() -> None:
    worlds = [WORLDS[name] for name in HELD_OUT]
    shipped, rules = (objective_of(make_policy(name), worlds, 4)[0] for name in ("esper-v1", "heuristic"))
    assert shipped > rules + 3.0
