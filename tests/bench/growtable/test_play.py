"""Real sequences of a small world: played with shared beginnings, whole, by ``esper/Grow-v0``'s world, and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esper.bench.growtable.build import BuildPlan, BuildProgress, build, planned, units, wanted
from esper.bench.growtable.check import FRESH, compare, pooled_deviation
from esper.bench.growtable.host import SPACE, TableHost
from esper.bench.growtable.parts import Parts
from esper.bench.growtable.play import executor_of, play
from esper.bench.growtable.record import COLUMNS, Record, action_at
from esper.bench.growtable.sequences import Choice, Choices
from esper.bench.growtable.table import Table, table_of
from esper.bench.growtable.tabular import TabularWorld
from esper.bench.growtable.worlds import BLUEPRINTS, KNOWN, WORLDS, WorldFacts, WorldSpec, task_of
from esper.leyline import DataError, EnvSpec, Op, UsageError
from esper.simic.env import GrowEnv
from esper.simic.gym_host import flat_observation
from esper.tamiyo.masks import to_indices
from esper.tamiyo.policies import SchedulePolicy
from esper.tolaria.executor import Executor

SMALL = WorldSpec("small", "digits", channels=4, epochs=8, times=(0, 1))
EARLY = Choice(0, "block0", "conv5")
LATER = (EARLY, Choice(1, "block1", "depthwise5"))
TOGETHER = (Choice(1, "block0", "norm"), Choice(1, "block1", "conv3"))


@pytest.fixture(scope="module", autouse=True)
def small_world() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KNOWN, "small", SMALL)
        yield


@pytest.fixture(scope="module")
def records() -> dict[Choices, Record]:
    return dict(play(SMALL, 0, [(), (EARLY,), LATER, TOGETHER]))


def test_what_a_sequence_starts_from_is_played_as_far_as_it_is_needed(
    records: dict[Choices, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    step = Executor.step
    monkeypatch.setattr(Executor, "step", lambda self, *given: epochs.append(self.epoch) or step(self, *given))
    (alone,) = play(SMALL, 0, [LATER])
    assert alone[0] == LATER and alone[1].ending == records[LATER].ending
    assert all(np.array_equal(alone[1].steps[name], records[LATER].steps[name], equal_nan=True) for name in COLUMNS)
    assert epochs == list(range(SMALL.epochs)), "the trunk, its branch and the branch's branch take turns, once each"


def test_sequences_with_shared_beginnings_end_as_whole_ones_do(records: dict[Choices, Record]) -> None:
    executor = executor_of(SMALL)
    specs = [EnvSpec(i, 0, SMALL.seed(0), SMALL.epochs) for i in range(len(records))]
    views = executor.reset(specs)
    starts = executor.engine.evaluate(executor.envs, [({},) for _ in specs]).metric[:, 0]
    policies = [SchedulePolicy([choice.entry for choice in choices]) for choices in records]
    for policy, spec in zip(policies, specs, strict=True):
        policy.reset([spec])
    for _ in range(SMALL.epochs):
        decisions = [policy.decide([view])[0] for policy, view in zip(policies, views, strict=True)]
        views = [report.view for report in executor.step(decisions)]
    for record, start, result in zip(records.values(), starts, executor.finish(), strict=True):
        assert record.start_metric == start and record.ending.test_loss == result.test_loss
        assert record.ending.validation_metric == result.validation_metric
        assert record.ending.total_macs == result.total_macs


def test_two_choices_of_one_time_germinate_one_after_the_other(records: dict[Choices, Record]) -> None:
    steps = records[TOGETHER].steps
    assert [action_at(steps, epoch) for epoch in (2, 3)] == [choice.action for choice in TOGETHER]
    assert list(np.flatnonzero(records[LATER].steps["op"] == Op.GERMINATE)) == [1, 2]


def test_the_table_shows_and_pays_what_a_real_environment_does(records: dict[Choices, Record]) -> None:
    host = TableHost(SMALL, WorldFacts.of(SMALL), 0, records)
    real, table = GrowEnv(task=task_of(SMALL)), TabularWorld()
    for choices in (LATER, TOGETHER):
        (seen, _), (told,) = real.reset(options={"host": SMALL.seed(0)}), table.begin([host])
        assert np.array_equal(seen, flat_observation(told, SPACE))
        for epoch in range(1, SMALL.epochs + 1):
            action = action_at(records[choices].steps, epoch)
            assert action in table.nodes[0].held
            seen, paid, over, _, info = real.step(to_indices(SPACE, action))
            step = table.step(0, action)
            assert not info["illegal"]
            # facts are kept at half precision
            assert np.abs(seen - flat_observation(step.view, SPACE)).max() < 2e-3, epoch
            assert step.paid.total == pytest.approx(paid, abs=1e-4) and step.held
            assert step.ended == over


def test_an_interrupted_build_goes_on_and_plays_nothing_twice(tmp_path: Path) -> None:
    plan = BuildPlan(worlds=("small",), seeds=2, singles=2, pairs=1, pair_seeds=2)
    told: list[BuildProgress] = []

    def stop(progress: BuildProgress) -> None:
        told.append(progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(plan, tmp_path, 1, stop)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert before and told[0].done < told[0].of == 2 * len(wanted(plan, SMALL, 0))
    torn = tmp_path / "small" / "0" / ".block0-conv3-0.safetensors.aa.tmp"
    torn.write_bytes(b"half of a file, from a build that was killed")
    build(plan, tmp_path, 1, told.append)
    assert not list(units(plan, Parts(tmp_path))) and told[-1].done == told[-1].of
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    build(plan, tmp_path, 1, lambda progress: pytest.fail("there is nothing left to play"))
    table = table_of(planned(plan, Parts(tmp_path)), {})
    assert [set(host.records) for host in table.of("small")] == [set(wanted(plan, SMALL, n)) for n in (0, 1)]
    _refusals(tmp_path)


def _refusals(root: Path) -> None:
    """What is damaged, or of another definition of the world, is refused by name."""
    parts = Parts(root)
    with pytest.raises(DataError, match="of another definition of world small; build in another directory"):
        parts.read(replace(SMALL, lr=0.5), 0, ())
    path = parts.path(SMALL, 0, ())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="static.safetensors: .*; delete it and build again"):
        parts.read(SMALL, 0, ())


def test_plans_out_of_range_are_refused() -> None:
    for wrong, why in (({"seeds": 1}, "seeds is 1"), ({"pairs": -1}, "pairs is -1"), ({"singles": 0}, "singles is 0")):
        with pytest.raises(UsageError, match=why):
            BuildPlan(**wrong)
    with pytest.raises(UsageError, match="workers is 0"):
        build(BuildPlan(), Path("nowhere"), 0, print)


def test_a_check_plays_fresh_hosts_and_its_error_is_that_of_the_difference(records: dict[Choices, Record]) -> None:
    static = {(): records[()]}
    other = {(): replace(records[()], ending=replace(records[()].ending, test_metric=0.0))}
    facts = WorldFacts.of(SMALL)
    hosts = [TableHost(SMALL, facts, 0, static), TableHost(SMALL, facts, 1, other)]
    here = records[()].ending.test_metric
    assert pooled_deviation(hosts) == pytest.approx(here / 2**0.5)
    (found,) = compare(Table(hosts, {}), 1)
    assert found.predicted == pytest.approx(here / 2) and found.sequence == "static"
    assert found.standard_error == pytest.approx(here / 2**0.5 * 1.5**0.5)
    assert found.real == dict(play(SMALL, FRESH, [()]))[()].ending.test_metric
    one = TableHost(SMALL, facts, 2, {(): other[()], (EARLY,): records[(EARLY,)]})
    assert pooled_deviation([*hosts, one]) == pytest.approx(here / 3**0.5), "nobody shares what one host alone holds"
    assert {each.sequence for each in compare(Table([*hosts, one], {}), 3)} == {"static"}
    assert not replace(found, real=found.predicted + 2.1 * found.standard_error).within


def test_worlds_differ_where_they_say() -> None:
    plain, shuffled, noisy = (task_of(WORLDS[f"digits{end}"]).data for end in ("", "-shuffled", "-noisy"))
    assert plain.train.inputs.flatten(1).sort(1).values.equal(shuffled.train.inputs.flatten(1).sort(1).values)
    assert not plain.train.inputs.equal(shuffled.train.inputs) and plain.test.targets.equal(noisy.test.targets)
    changed = float((plain.train.targets != noisy.train.targets).float().mean())
    assert 0.25 < changed < 0.45, "two in five are drawn again, and one in ten of those stays what it was"
    facts = WorldFacts.of(WORLDS["digits-deep-noisy"])
    assert facts.host_parameters > WorldFacts.of(WORLDS["digits"]).host_parameters
    assert set(facts.blueprint_parameters) == set(BLUEPRINTS)


@pytest.mark.slow
def test_processes_build_what_one_builds(tmp_path: Path) -> None:
    plan = BuildPlan(worlds=("digits-wide-short",), seeds=2, singles=1, pairs=0)
    for workers in (1, 2):
        build(plan, tmp_path / str(workers), workers, lambda progress: None)
    one, two = (planned(plan, Parts(tmp_path / str(workers))) for workers in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert a.record.ending == b.record.ending
