"""The whole bench on a tiny task: who waits for whom, equal trials, and nothing is run twice."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import bench_toys
import pytest

from esper.bench.analysis import analyse, macs
from esper.bench.campaign import Campaign, work_of
from esper.bench.report import tables
from esper.bench.settings import BenchConfig
from esper.bench.store import Store
from esper.leyline import EsperError, UsageError
from esper.tamiyo.policies.learned import SHIPPED_FILE, load_policy

CONFIG = BenchConfig(
    task=bench_toys.TINY,
    arms=("small", "large-equal", "retrained", "retrained-equal", "schedule", "net2net"),
    grown="net2net",
    seeds=2,
    trials=2,
    tuning_seeds=1,
    workers=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "run"
    work = work_of(CONFIG)
    told = []
    campaign = Campaign(CONFIG, work, Store.open(path, CONFIG, work), lambda *what: told.append(what))
    return path, campaign, campaign.run(), told


def test_every_arm_is_tuned_with_as_many_trials_and_played_on_every_seed(run):
    _, _, evidence, _ = run
    assert list(evidence.finals) and set(evidence.finals) == set(evidence.tuning) == set(CONFIG.arms)
    assert all(len(tuning.tried) == CONFIG.trials for tuning in evidence.tuning.values())
    assert all(len(outcomes) == CONFIG.seeds for outcomes in evidence.finals.values())
    assert all(outcome.test is not None for outcomes in evidence.finals.values() for outcome in outcomes)


def test_the_chosen_setting_is_the_best_by_validation(run):
    for tuning in run[2].tuning.values():
        assert dict(tuning.tried)[tuning.setting] == max(value for _, value in tuning.tried if value is not None)


def test_equal_arms_spend_what_the_grown_run_of_their_seed_spent_and_retrained_ones_have_its_topology(run):
    evidence = run[2]
    for i, grown in enumerate(evidence.finals["net2net"]):
        for name in ("large-equal", "retrained-equal"):
            outcome = evidence.finals[name][i]
            assert grown.macs <= outcome.macs < grown.macs + outcome.curve[0][0]
        assert evidence.finals["retrained"][i].seeds == evidence.finals["retrained-equal"][i].seeds == grown.seeds
        assert evidence.finals["retrained"][i].epochs == 2


def test_no_seed_serves_two_ends(run):
    campaign = run[1]
    assert not set(campaign.seeds("tune")) & set(campaign.seeds("final"))
    more = Campaign(replace(CONFIG, seeds=5), campaign.work, campaign.store)
    assert more.seeds("final")[:2] == campaign.seeds("final")


def test_going_on_runs_nothing_twice_and_finds_the_same(run):
    path, campaign, evidence, _ = run
    told = []
    again = Campaign(CONFIG, campaign.work, Store.open(path, CONFIG, campaign.work), lambda *what: told.append(what))
    assert again.run() == evidence
    assert told == []


def test_another_seed_runs_only_that_seed(run):
    path, campaign, evidence, _ = run
    config = replace(CONFIG, seeds=3)
    told = []
    more = Campaign(config, campaign.work, Store.open(path, config, campaign.work), lambda *what: told.append(what))
    finals = more.run().finals
    assert len(told) == len(CONFIG.arms) and all("final" in what for _, _, what in told)
    assert {arm: outcomes[:2] for arm, outcomes in finals.items()} == evidence.finals


def test_a_lost_worker_is_said_in_one_line_and_what_was_finished_stays(run):
    class Lost:
        def submit(self, call):
            future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

        def shutdown(self, **_):
            pass

    config = replace(CONFIG, seeds=4, workers=2)
    campaign = Campaign(config, run[1].work, run[1].store)
    campaign._pool = Lost()
    before = len(run[1].store)
    with pytest.raises(EsperError, match="the same command goes on"):
        campaign.run()
    assert len(run[1].store) == before


def test_a_policy_arm_needs_its_file_and_rank_a_linear_layer_to_grow_beside(run):
    with pytest.raises(UsageError, match="--policy-checkpoint"):
        Campaign(replace(CONFIG, arms=("policy",)), run[1].work, run[1].store)
    with pytest.raises(UsageError, match="'growra' grows beside linear layers alone"):
        Campaign(replace(CONFIG, arms=("growra",)), run[1].work, run[1].store)


def test_what_a_learned_policy_took_to_train_is_said(run):
    config = replace(CONFIG, policy="esper-v1")
    findings = analyse(run[2], CONFIG.grown, bench_toys.tiny().metric)
    *_, sentence = tables(config, run[1].work, run[2], findings)
    card = load_policy(SHIPPED_FILE).card
    assert sentence == f"Policy: esper-v1, {macs(card['policy_macs'] + card['table_macs'])} MACs to train."


def test_each_seed_may_draw_a_split_of_its_own(tmp_path):
    config = replace(CONFIG, task="emoji", arms=("small",), grown="frugal", resplit=True)
    work = work_of(config)
    campaign = Campaign(config, work, Store.open(tmp_path / "run", config, work))
    small = next(arm for arm in campaign.arms if arm.name == "small")
    frugal = next(arm for arm in campaign.arms if arm.name == "frugal")
    setting = campaign.settings(small)[0]
    splits = [
        dict(campaign.trial(small, stage, number, setting).work.options)["split"]
        for stage, number in (("final", 0), ("final", 1), ("tune", 0))
    ]
    assert len(set(splits)) == 3
    assert dict(campaign.trial(frugal, "final", 1, setting).work.options)["split"] == splits[1]
    with pytest.raises(UsageError, match="unknown option of task 'bench_toys:tiny' 'split'"):
        Campaign(replace(CONFIG, resplit=True), work_of(CONFIG), campaign.store)
