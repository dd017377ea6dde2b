"""A sweep: ranges, trials on the same seeds, going on after a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esper.bench.sweep import BASE, Axis, SweepPlan, TrialResult, axis, best_of, lead, sweep
from esper.karn.runtable import run_table
from esper.leyline import DataError, UsageError
from esper.nissa.rundir import RunDirectory
from esper.run.config import RunConfig
from esper.scripts.heuristic import run_heuristic
from esper.simic.ppo_config import PPORunConfig
from forking import fork

SHORT = {"task": "toy:toy_task", "policy": "static", "compare": (), "episodes": 2, "max_epochs": 2, "export": False}
RATE = axis(RunConfig, "lr=0.001..0.1:log")
PLAN = SweepPlan("heuristic", {**SHORT, "quiet": True}, (RATE,), trials=2)


def play(settings: Mapping[str, Any], path: Path, going_on: bool) -> None:
    assert not going_on
    run_heuristic(settings, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lr=0.001..0.1:log", Axis("lr", 0.001, 0.1, log=True)),
        ("seed-lr-multiplier=1..4", Axis("seed_lr_multiplier", 1.0, 4.0)),
        ("max_seeds=1..3", Axis("max_seeds", 1, 3, whole=True)),
        ("blueprints=norm|conv3,norm", Axis("blueprints", values=("norm", "conv3,norm"))),
        ('optimizer={"betas":[0.9,0.99]}|{}', Axis("optimizer", values=('{"betas":[0.9,0.99]}', "{}"))),
    ],
)
def test_ranges_are_read_by_the_type_of_the_setting(text: str, found: Axis) -> None:
    assert axis(RunConfig, text) == found
    assert found.distribution() is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lrr=1..2", "unknown setting 'lrr'; did you mean 'lr'"),
        ("rounds=1..2", "unknown setting 'rounds'"),
        ("lr", "NAME=LOW..HIGH"),
        ("lr=2..1", "LOW is above HIGH"),
        ("lr=1..1", "two bounds or more are needed"),
        ("lr=1..2..3", "LOW..HIGH must be two numbers"),
        ("max_seeds=1..2.5", "LOW..HIGH must be two whole numbers"),
        ("lr=1..2:lin", "scale 'lin'; legal: log"),
        ("lr=0..1:log", "begins above 0"),
        ("max_seeds=0..2", "max_seeds is 0; it must be 1 or more"),
        ("incubation=probe|grfat", "incubation is 'grfat'"),
        ("policy=static..random", "policy is no number"),
        ("policy=static", "two values or more are needed"),
        ("seed=0..3", "seed is the same in every trial"),
    ],
)
def test_what_is_no_range_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        axis(RunConfig, text)
    assert "\n" not in str(caught.value)


def test_a_learners_settings_are_searched_too() -> None:
    assert axis(PPORunConfig, "entropy=0.001..0.1:log").log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialResult]]:
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    return folder, sweep(PLAN, folder, play, lambda result: None)


def test_trials_are_runs_on_the_same_seeds_with_the_settings_that_were_chosen(
    whole: tuple[Path, list[TrialResult]],
) -> None:
    folder, found = whole
    assert [each.name for each in found] == [BASE, "trial-0000", "trial-0001"]
    assert all(set(each.validation) == set(each.test) == {0, 1} for each in found)
    rates = [each.chosen["lr"] for each in found[1:]]
    assert len(set(rates)) == 2 and all(0.001 <= rate <= 0.1 for rate in rates)
    for each in found[1:]:
        assert RunDirectory.open(folder / each.name).manifest.values()["lr"] == each.chosen["lr"]
    # and the table of runs shows what they differ in
    table = run_table([folder / each.name for each in found], now=0.0)
    assert "lr" in table.keys and [row.settings.get("lr") for row in table.rows[1:]] == rates


def test_a_sweep_that_was_killed_goes_on_as_if_nothing_had_been(
    whole: tuple[Path, list[TrialResult]], tmp_path: Path
) -> None:
    child = fork()
    if child == 0:

        def killed(settings: Mapping[str, Any], path: Path, going_on: bool) -> None:
            if path.name == "trial-0000":
                path.mkdir()
                os.kill(os.getpid(), signal.SIGKILL)
            play(settings, path, going_on)

        sweep(PLAN, tmp_path / "s", killed, lambda result: None)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    played: list[str] = []

    def rest(settings: Mapping[str, Any], path: Path, going_on: bool) -> None:
        played.append(path.name)
        play(settings, path, going_on)

    assert sweep(PLAN, tmp_path / "s", rest, lambda result: None) == whole[1]
    assert played == ["trial-0000", "trial-0001"]


def test_a_folder_of_another_sweep_is_refused(whole: tuple[Path, list[TrialResult]]) -> None:
    with pytest.raises(UsageError, match="holds a sweep of other settings or ranges"):
        sweep(replace(PLAN, seed=1), whole[0], play, lambda result: None)


def test_what_cannot_be_run_at_all_ends_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="starts from cannot be run: .*no slot"):
        sweep(replace(PLAN, settings={**SHORT, "slots": ()}), tmp_path, play, lambda result: None)


def test_a_trial_that_fails_is_told_of_and_others_follow(tmp_path: Path) -> None:
    def sometimes(settings: Mapping[str, Any], path: Path, going_on: bool) -> None:
        if path.name == "trial-0000":
            raise UsageError("not this one")
        play({**settings, "max_epochs": 1, "episodes": 1}, path, going_on)

    found = sweep(PLAN, tmp_path / "s", sometimes, lambda result: None)
    assert [each.why for each in found] == [None, "not this one", None]
    assert best_of(PLAN, found) == found[2]


def test_a_file_that_is_no_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.db").write_text("not a database")
    with pytest.raises(DataError, match="not a sweep's study") as caught:
        sweep(PLAN, tmp_path, play, lambda result: None)
    assert "\n" not in str(caught.value)


def test_validation_chooses_and_the_test_split_is_paired_by_seed() -> None:
    base = TrialResult(BASE, {}, {0: 50.0, 1: 60.0}, {0: 40.0, 1: 70.0})
    low = TrialResult("trial-0000", {}, {0: 40.0, 1: 90.0}, {0: 41.0, 1: 73.0})
    high = TrialResult("trial-0001", {}, {0: 70.0, 1: 30.0}, {0: 99.0, 1: 99.0})
    broken = TrialResult("trial-0002", {}, why="not finite")
    assert best_of(PLAN, [base, low, high, broken]) is low
    assert best_of(replace(PLAN, higher_is_better=False), [base, low, high]) is high
    assert best_of(PLAN, [base, broken]) is None
    ahead = lead(PLAN, low, base)
    assert ahead is not None and (ahead.mean, ahead.values) == (2.0, (1.0, 3.0))
    behind = lead(replace(PLAN, higher_is_better=False), low, base)
    assert behind is not None and behind.mean == -2.0


def test_what_is_not_a_sweeps_own_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds no sweep, but base, which a sweep would write"):
        sweep(PLAN, tmp_path, play, lambda result: None)
    assert (tmp_path / "base" / "thesis.tex").read_text() == "years of work"


def test_whatever_a_trial_fails_of_others_follow(tmp_path: Path) -> None:
    def fails(settings: Mapping[str, Any], path: Path, going_on: bool) -> None:
        if path.name == "trial-0000":
            saving = path / "checkpoints" / ".ckpt-000001-step-00000001.saving"
            assert not saving.exists(), "it is not begun again where another was not finished"
            saving.mkdir(parents=True)
            raise RuntimeError("not enough memory: you tried to allocate 10 GB\nat alloc.cpp")
        play(settings, path, going_on)

    told: list[TrialResult] = []
    first = sweep(PLAN, tmp_path, fails, told.append)
    assert [each.why for each in first] == [None, "RuntimeError: not enough memory: you tried to allocate 10 GB", None]
    again = sweep(PLAN, tmp_path, fails, told.append)
    assert [each.why for each in again] == [each.why for each in first], (
        "a save that was broken off is nothing to go on"
    )


def test_a_figure_that_is_none_is_not_the_best() -> None:
    base = TrialResult(BASE, {}, {0: 1.0})
    found = [base, TrialResult("trial-0000", {}, {0: float("nan")}), TrialResult("trial-0001", {}, {0: 0.9})]
    best = best_of(PLAN, found)
    assert best is not None and best.name == "trial-0001"
