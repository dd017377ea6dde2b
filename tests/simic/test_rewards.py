"""No way to farm: what a return is worth follows from where the episode ends, in every mode and for every discount."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import Metric, Op, SeedStage, UsageError
from esper.simic import rewards
from esper.simic.rewards import Change, RewardBreakdown, RewardConfig, RewardInputs, RewardMode, RewardTracker

ACCURACY = Metric("accuracy", "%", chance=10.0)
ERROR = Metric("error", "kg", higher_is_better=False)
MODES = list(RewardMode)

STANDINGS = st.builds(
    RewardInputs,
    metric=st.floats(0, 100),
    growth=st.floats(0, 8),
    worth=st.none() | st.floats(-20, 60) | st.just(math.nan),
    stages=st.lists(st.sampled_from(SeedStage), max_size=3).map(tuple),
)
GAMMAS = st.sampled_from((1.0, 0.99, 0.9))
EMPTY = RewardInputs(50.0, 0.0, None, (SeedStage.DORMANT,))


def play(
    config: RewardConfig,
    gamma: float,
    path: Sequence[RewardInputs],
    ops: Sequence[Op] = (),
    *,
    metric: Metric = ACCURACY,
    start: RewardInputs = EMPTY,
    curve: tuple[float, ...] | None = None,
) -> tuple[float, list[RewardBreakdown], RewardTracker]:
    """Discounted return of an episode that goes through ``path`` and ends there."""
    tracker = RewardTracker(config, metric, gamma, len(path), start, curve=curve)
    ops = [*ops, *([Op.WAIT] * (len(path) - len(ops)))]
    paid = [
        tracker.pay(inputs, op, ended=i == len(path) - 1) for i, (inputs, op) in enumerate(zip(path, ops, strict=True))
    ]
    return math.fsum(gamma**i * one.total for i, one in enumerate(paid)), paid, tracker


@given(st.lists(STANDINGS, min_size=1, max_size=12), GAMMAS, st.sampled_from([ACCURACY, ERROR]))
def test_the_objective_telescopes(path: list[RewardInputs], gamma: float, metric: Metric) -> None:
    total, _, tracker = play(RewardConfig(), gamma, path, metric=metric)
    assert total == pytest.approx(gamma ** len(path) * tracker.gain, abs=1e-8)
    assert tracker.gain == pytest.approx(tracker.objective(path[-1]) - tracker.objective(EMPTY), abs=1e-9)


@given(st.lists(STANDINGS, min_size=1, max_size=12), GAMMAS, st.sampled_from(MODES))
def test_components_are_named_and_add_up(path: list[RewardInputs], gamma: float, mode: RewardMode) -> None:
    _, paid, tracker = play(RewardConfig(mode), gamma, path, [Op.PRUNE])
    for one in paid:
        assert one.total == math.fsum(one.components.values()) and all(one.components)
    assert tracker.paid == pytest.approx(sum(tracker.components.values()), abs=1e-8)


@given(st.lists(STANDINGS, min_size=1, max_size=10), GAMMAS)
def test_shaping_is_repaid_to_the_last_point(path: list[RewardInputs], gamma: float) -> None:
    _, paid, _ = play(RewardConfig(RewardMode.SHAPED), gamma, path)
    for name in ("shaping_stage", "shaping_worth"):
        total = math.fsum(gamma**i * one.components[name] for i, one in enumerate(paid))
        assert total == pytest.approx(0.0, abs=1e-9), name


def cycles(length: int) -> tuple[list[RewardInputs], list[Op]]:
    """Germinate, collect every credit there is, prune, again and again; the end is an empty host."""
    stages = (SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.PRUNED)
    path, ops = [], []
    for i in range(length - 1):
        stage = stages[i % len(stages)]
        grown = stage is not SeedStage.PRUNED
        path.append(RewardInputs(70.0 if grown else 50.0, 1.0 if grown else 0.0, 20.0 if grown else None, (stage,)))
        ops.append([Op.GERMINATE, Op.WAIT, Op.ADVANCE, Op.WAIT, Op.PRUNE][i % len(stages)])
    return [*path, EMPTY], [*ops, Op.PRUNE]


def hold_forever(length: int) -> tuple[list[RewardInputs], list[Op]]:
    """Grow early, never commit: the end takes the seed out."""
    held = RewardInputs(80.0, 1.0, 30.0, (SeedStage.HOLDING,))
    return [*[held] * (length - 1), EMPTY], [Op.GERMINATE]


def last_minute(length: int) -> tuple[list[RewardInputs], list[Op]]:
    """Grow in the last but one step, to be found with a seed at the end."""
    late = RewardInputs(50.0, 2.0, None, (SeedStage.GERMINATED,))
    return [*[EMPTY] * (length - 2), late, EMPTY], [*[Op.WAIT] * (length - 2), Op.GERMINATE]


def rolled_back(length: int) -> tuple[list[RewardInputs], list[Op]]:
    """A branch that shone, and was rolled back to the empty host, several times."""
    shining = RewardInputs(99.0, 1.0, 49.0, (SeedStage.BLENDING,))
    return [shining if i % 2 == 0 else EMPTY for i in range(length - 1)] + [EMPTY], [Op.GERMINATE]


TRICKS = (cycles, hold_forever, last_minute, rolled_back)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.9])
@pytest.mark.parametrize("length", [2, 5, 12])
def test_tricks_gain_nothing(mode: str, trick: Any, gamma: float, length: int) -> None:
    path, ops = trick(length)
    honest, _, _ = play(RewardConfig(mode), gamma, [EMPTY] * length)
    tricked, _, _ = play(RewardConfig(mode), gamma, path, ops)
    assert tricked <= honest + 1e-9


def test_a_reward_that_is_not_repaid_fails_that_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeps(change: Change) -> dict[str, float]:
        return {"metric": max(0.0, change.difference(change.metric))}

    monkeypatch.setitem(rewards.MODES, "mutant", keeps)
    for trick in (cycles, hold_forever, rolled_back):
        path, ops = trick(10)
        assert play(RewardConfig("mutant"), 1.0, path, ops)[0] > play(RewardConfig("mutant"), 1.0, [EMPTY] * 10)[0] + 1


@given(st.lists(STANDINGS, min_size=1, max_size=4), st.lists(STANDINGS, max_size=4), GAMMAS)
def test_a_rolled_back_branch_is_not_credited(lost: list[RewardInputs], rest: list[RewardInputs], gamma: float) -> None:
    """Two episodes that differ only in a branch that was undone are worth the same."""
    kept = RewardInputs(60.0, 0.5, 5.0, (SeedStage.HOLDING,))
    end = [*rest, RewardInputs(65.0, 0.5, None, (SeedStage.FOSSILIZED,))]
    for mode in (RewardMode.OBJECTIVE, RewardMode.SPARSE):
        with_branch = play(RewardConfig(mode), gamma, [kept, *lost, kept, *end])[0]
        without = play(RewardConfig(mode), gamma, [kept, *[kept] * len(lost), kept, *end])[0]
        assert with_branch == pytest.approx(without, abs=1e-8)


def test_real_gain_is_paid_in_every_mode() -> None:
    kept = [
        RewardInputs(50.0, 0.5, None, (SeedStage.TRAINING,)),
        RewardInputs(75.0, 0.5, 25.0, (SeedStage.HOLDING,)),
        RewardInputs(80.0, 0.5, None, (SeedStage.FOSSILIZED,)),
    ]
    for mode in MODES:
        assert play(RewardConfig(mode), 1.0, kept)[0] > play(RewardConfig(mode), 1.0, [EMPTY] * 3)[0] + 20


def test_rent_is_points_per_doubling_in_the_metrics_unit() -> None:
    doubled = [RewardInputs(50.0, 1.0, None, (SeedStage.FOSSILIZED,))]
    assert play(RewardConfig(rent=0.5), 1.0, doubled)[0] == pytest.approx(-0.5)
    start = RewardInputs(200.0, 0.0)
    worse = [RewardInputs(200.0, 1.0)]
    assert play(RewardConfig(rent=0.5), 1.0, worse, metric=ERROR, start=start)[0] == pytest.approx(-0.5 * 2.0)
    better = [RewardInputs(150.0, 0.0)]
    assert play(RewardConfig(), 1.0, better, metric=ERROR, start=start)[0] == pytest.approx(50.0)


@given(st.lists(STANDINGS, min_size=1, max_size=8), GAMMAS, st.sampled_from(MODES))
def test_the_control_variate_is_the_same_whatever_is_done(path: list[RewardInputs], gamma: float, mode: str) -> None:
    curve = tuple(50.0 + 3.0 * i for i in range(len(path) + 1))
    with_control = play(RewardConfig(mode), gamma, path, curve=curve)[0]
    without = play(RewardConfig(mode), gamma, path)[0]
    exponent = len(path) if mode not in (RewardMode.SPARSE, RewardMode.SHAPED) else len(path) - 1
    assert without - with_control == pytest.approx(gamma**exponent * (curve[-1] - curve[0]), abs=1e-8)


@given(st.lists(STANDINGS, min_size=2, max_size=8), GAMMAS, st.sampled_from(MODES))
def test_an_account_survives_a_checkpoint(path: list[RewardInputs], gamma: float, mode: str) -> None:
    whole = play(RewardConfig(mode), gamma, path)[1]
    first = RewardTracker(RewardConfig(mode), ACCURACY, gamma, len(path), EMPTY)
    head = [first.pay(inputs) for inputs in path[:1]]
    second = RewardTracker(RewardConfig(mode), ACCURACY, gamma, len(path), EMPTY)
    second.load(first.to_dict())
    tail = [second.pay(inputs, ended=i == len(path) - 1) for i, inputs in enumerate(path) if i > 0]
    assert [one.total for one in [*head, *tail]] == [one.total for one in whole]


@pytest.mark.parametrize(
    "wrong", [{"mode": "bounty"}, {"rent": -1.0}, {"rent": math.nan}, {"rent_on": "time"}, {"worth_cap": math.inf}]
)
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RewardConfig(**wrong)
