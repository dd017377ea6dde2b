"""Arms and what they may tune."""

from dataclasses import replace

import pytest

from esper.bench.arms import ARMS, FULL, QUICK, chosen
from esper.bench.settings import DEFAULT, GRIDS, MOST_TRIALS, BenchConfig, Family, Initial, TrialSetting
from esper.leyline import UsageError


def test_every_family_has_as_many_different_settings():
    assert set(GRIDS) == set(Family)
    for grid in GRIDS.values():
        assert len(grid) == len(set(grid)) == MOST_TRIALS


def test_scratch_may_choose_its_learning_rate_as_freely_as_growth_does():
    rates = {family: {setting.lr for setting in grid} for family, grid in GRIDS.items()}
    assert rates[Family.SCRATCH] == rates[Family.POLICY] == rates[Family.INSERTION] <= rates[Family.HOST]
    assert {setting.initial for setting in GRIDS[Family.SCRATCH]} == set(Initial)


def test_labels_tell_settings_apart():
    for grid in GRIDS.values():
        assert len({setting.label() for setting in grid}) == len(grid)
    assert TrialSetting(2.0, 1.0, restart=True, at=0.3).label() == "lr x2, seed lr x1, restart, at 30%"
    assert TrialSetting(2.0, quick=True).label() == "lr x2, quick gates"


def test_chosen_arms_keep_their_order_and_hold_the_grown_one():
    assert [arm.name for arm in chosen(["large-equal", "small"], "blind")] == ["small", "large-equal", "blind"]
    assert set(QUICK) <= set(FULL) < set(ARMS)


@pytest.mark.parametrize(
    ("names", "grown", "said"),
    [(["smal"], "heuristic", "smal"), (["small"], "large", "does not grow"), ([], "nobody", "nobody")],
)
def test_arms_that_cannot_be_are_refused(names, grown, said):
    with pytest.raises(UsageError, match=said):
        chosen(names, grown)


def test_only_arms_that_need_a_grown_run_wait_for_it():
    assert {arm.name for arm in ARMS.values() if arm.dependent} == {
        "small-equal",
        "large-equal",
        "retrained",
        "retrained-equal",
        "search-random",
        "search-tpe",
    }


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"tuning_seeds": 0}, {"epochs": 0}, {"workers": 0}, {"trials": 99}])
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        replace(DEFAULT, **wrong)
    assert BenchConfig() == DEFAULT
