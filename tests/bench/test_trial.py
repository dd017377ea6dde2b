"""One arm on one seed under one setting."""

import json
from dataclasses import asdict, replace

import bench_toys
import pytest
import torch

from esper.bench.figures import moments
from esper.bench.settings import Initial, TrialSetting
from esper.bench.trial import TrialOutcome, Work, _TrialRun, run_trial
from esper.leyline import Blend, FactoredAction, Op


@pytest.fixture(scope="module")
def small():
    return run_trial(bench_toys.trial(stage="final"))


def test_an_outcome_goes_through_json(small):
    assert TrialOutcome.of(json.loads(json.dumps(asdict(small)))) == small
    assert small.failed is None and small.epochs == 2 and small.seeds == {}
    assert [macs for macs, _ in small.curve] == sorted({macs for macs, _ in small.curve})
    assert small.macs == small.spent["total_macs"] > small.curve[-1][0]


def test_trials_are_the_same_again(small):
    again = run_trial(bench_toys.trial(stage="final"))
    assert replace(again, seconds=0.0, cpu_seconds=0.0) == replace(small, seconds=0.0, cpu_seconds=0.0)


def test_tuning_does_not_look_at_the_test_split(small):
    tuned = run_trial(bench_toys.trial())
    assert tuned.test is None and tuned.spent["test_macs"] == 0
    assert small.test is not None and small.spent["test_macs"] > 0
    assert tuned.validation == small.validation


@pytest.mark.parametrize(
    ("stage", "topology", "macs"),
    [("tune", {"block0": "conv3"}, 1), ("final", {"block0": "conv3"}, 3_000_001), ("tune", {}, 8_000_000)],
)
def test_an_equal_share_is_at_least_the_budget_and_less_than_an_epoch_more(stage, topology, macs):
    """Of the host alone too, a large part of which is a first layer that gives no gradient back."""
    outcome = run_trial(bench_toys.trial(stage=stage, topology=topology, macs=macs))
    epoch = outcome.curve[0][0]
    assert outcome.macs >= macs
    assert outcome.epochs == 1 or outcome.macs - epoch < macs


def test_what_is_planted_is_there_in_the_end():
    full = run_trial(bench_toys.trial(topology="full"))
    assert full.seeds == {f"block{i}": "conv3" for i in range(3)}
    assert run_trial(bench_toys.trial(topology={"block1": "norm"})).seeds == {"block1": "norm"}


def test_the_start_matters():
    settings = [TrialSetting(seed_lr=1.0, initial=initial) for initial in Initial]
    one, other = (run_trial(bench_toys.trial(topology="full", setting=setting)) for setting in settings)
    assert one.validation_loss != other.validation_loss and one.macs == other.macs


@pytest.mark.parametrize("policy", ["net2net", "gradmax"])
def test_insertion_happens_once_at_its_time_and_fills_every_slot(policy):
    early = run_trial(bench_toys.trial(policy=policy))
    late = run_trial(bench_toys.trial(policy=policy, setting=TrialSetting(at=0.5)))
    assert len(early.seeds) == len(late.seeds) == 3
    assert early.macs > late.macs
    assert early.spent["counterfactual_macs"] == 0
    assert (early.spent["probe_macs"] > 0) is (policy == "gradmax")


def test_seeds_are_born_at_once_and_kept_on_evidence_or_by_one_look_in_the_end():
    work, quick = Work(bench_toys.TINY, (), 4), TrialSetting(lr=4.0, quick=True)
    names = ("one-step", "promised", "joint")
    outcomes = {name: run_trial(bench_toys.trial(work=work, policy=name, setting=quick)) for name in names}
    one_step, promised, joint = (outcomes[name] for name in names)
    assert one_step.births == (one_step.curve[0][0],) * 3, "after the first epoch"
    assert len(promised.births) == 3 and max(promised.births) < min(one_step.births), "before it"
    assert one_step.spent["probe_macs"] > 0 == joint.spent["probe_macs"]
    assert 0 < joint.spent["counterfactual_macs"] < one_step.spent["counterfactual_macs"], "judged once"
    assert set(joint.seeds.values()) <= {"norm"}


@pytest.mark.parametrize(("policy", "alike"), [("copied", True), ("frugal", False)])
def test_a_seed_is_born_with_what_another_has_learned(policy, alike):
    run = _TrialRun(bench_toys.trial(policy=policy))
    run._begin(2)
    slots = run.engine.trainer(0).model.slots
    first, second = ([FactoredAction(Op.GERMINATE, f"block{i}", "conv3", Blend.LINEAR, 1.0, 1)] for i in range(2))
    run.engine.apply([0], first)
    run.engine.train_epoch([0])
    slots["block0"].state.age_epochs = 1  # as after the tick that ends an epoch
    run.engine.apply([0], second)
    pairs = zip(slots["block0"].seed_parameters(), slots["block1"].seed_parameters(), strict=True)
    assert all(torch.equal(learned, born) for learned, born in pairs) is alike


def test_copies_are_stacked_once_at_their_time_behind_the_blocks_that_repeat():
    work = Work("bench_toys:copying", (), 2)
    outcome = run_trial(bench_toys.trial(work=work, policy="stacked", setting=TrialSetting(at=0.5)))
    assert outcome.seeds == {"block1": "clone", "block2": "clone"}
    assert outcome.curve[1][0] > 2 * outcome.curve[0][0], "the second epoch is dearer"
    assert outcome.births == (outcome.curve[0][0],) * 2, "what the first took was spent when they were born"
    assert moments([outcome], outcome.curve) == [outcome.curve[0]] * 2
    assert moments([outcome], [(3.0 * outcome.curve[0][0], 1.0)]) == [(3.0 * outcome.curve[0][0], 1.0)] * 2
    scratch = run_trial(bench_toys.trial(work=work, topology=dict(outcome.seeds)))
    assert scratch.parameters == outcome.parameters and scratch.macs > outcome.macs and scratch.births == ()
    without = run_trial(bench_toys.trial(policy="stacked"))
    assert without.failed is not None and "no copy of a block can grow in block0, block1, block2" in without.failed


def test_blind_growth_keeps_without_evidence_what_the_heuristic_measures():
    work = Work(bench_toys.TINY, (), 12)
    seeing, blind = (run_trial(bench_toys.trial(work=work, policy=name)) for name in ("heuristic", "blind"))
    assert seeing.spent["counterfactual_macs"] > 0
    assert blind.spent["counterfactual_macs"] == 0 and blind.spent["probe_macs"] > 0
    assert len(blind.seeds) == 3


def test_the_frugal_rules_grow_a_cheap_blueprint_where_the_heuristic_grows_the_largest():
    work = Work("digits", (), 7)
    setting = TrialSetting(lr=4.0, quick=True)
    names = ("heuristic", "frugal", "grafted")
    outcomes = {name: run_trial(bench_toys.trial(work=work, policy=name, setting=setting)) for name in names}
    kept = {name: set(outcome.seeds.values()) for name, outcome in outcomes.items()}
    assert kept == {"heuristic": {"conv5"}, "frugal": {"depthwise3"}, "grafted": {"depthwise3"}}
    assert outcomes["frugal"].spent["probe_macs"] > 0 == outcomes["grafted"].spent["probe_macs"]


@pytest.mark.parametrize("policy", ["heuristic", "esper-v1"])
def test_quick_gates_let_a_seed_through_sooner(policy):
    usual, quick = (
        run_trial(bench_toys.trial(work=Work("digits", (), 5), policy=policy, setting=TrialSetting(quick=quick)))
        for quick in (False, True)
    )
    assert not usual.seeds and quick.seeds


def test_a_run_that_is_given_up_is_an_outcome():
    outcome = run_trial(bench_toys.trial(setting=TrialSetting(lr=1e30), work=Work(bench_toys.TINY, (), 8)))
    assert outcome.failed is not None and outcome.validation is None and outcome.test is None


def test_every_part_of_a_trial_is_in_its_key():
    trial = bench_toys.trial()
    others = [
        replace(trial, seed=4),
        replace(trial, arm="large"),
        replace(trial, stage="final"),
        replace(trial, setting=TrialSetting(lr=2.0)),
        replace(trial, policy="heuristic"),
        replace(trial, entries=({"epoch": 1},)),
        replace(trial, topology="full"),
        replace(trial, topology={"block0": "conv3"}),
        replace(trial, macs=5),
        replace(trial, work=replace(trial.work, epochs=3)),
    ]
    assert len({each.key() for each in (trial, *others)}) == len(others) + 1
    assert bench_toys.trial().key() == trial.key()
