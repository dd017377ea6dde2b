from __future__ import annotations

import copy
import math

from hypothesis import given, settings

from esper.karn import anomaly
from esper.karn.aggregator import fold
from esper.karn.state import AnomalyFold, EnvironmentFold, RunState
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.streams import Recorder, begin, begin_episode, epoch_done, runs


def _run(metrics: list[float], **data: object) -> RunState:
    rec = Recorder()
    begin(rec, max_epochs=99)
    for env in (0, 1):
        begin_episode(rec, env, max_epochs=99)
    for epoch, metric in enumerate(metrics, 1):
        epoch_done(rec, 0, epoch, metric, **data)
        epoch_done(rec, 1, epoch, 50.0 + epoch)
    return fold(rec.events)


def _names(state: RunState) -> set[str]:
    return set(state.environments[0].anomaly.evidence)


def test_a_calm_environment_has_no_factor() -> None:
    state = _run([50.0 + epoch for epoch in range(10)])
    assert _names(state) == set() and anomaly.status(state.environments[0].rank) == "ok"


def test_falling_is_the_share_of_progress_lost() -> None:
    state = _run([50, 55, 60, 65, 70, 75, 80, 62])
    (factor,) = anomaly.factors(state.environments[0].anomaly)
    assert factor.name == "falling" and abs(factor.measured - 18 / 30) < 1e-9


def test_noise_is_not_falling() -> None:
    assert "falling" not in _names(_run([60, 64, 60, 64, 60, 64, 60]))


def test_slow_compares_with_the_other_environments() -> None:
    state = _run([50.0 + epoch for epoch in range(10)], train_ms=500.0)
    assert _names(state) == {"slow"}
    assert state.environments[1].anomaly.evidence == {}


def test_one_environment_is_never_slow() -> None:
    rec = Recorder()
    begin(rec, envs=1)
    begin_episode(rec, 0)
    for epoch in range(1, 9):
        epoch_done(rec, 0, epoch, 50.0 + epoch, train_ms=50.0 if epoch < 8 else 5000.0)
    assert _names(fold(rec.events)) == set()


def test_storms() -> None:
    rec = Recorder()
    begin(rec)
    begin_episode(rec, 0)
    for index in range(4):
        seed = f"s{index}"
        where = {"env_id": 0, "epoch": 3, "slot_id": "stem", "seed_id": seed}
        rec.say(T.SEED_PRUNED, **where, from_="TRAINING", reason="no gain", age_epochs=1)
    epoch_done(rec, 0, 3, 50.0)
    assert _names(fold(rec.events)) == {"prune_storm"}


def test_rent_without_gain_needs_a_measurement() -> None:
    def state(cost: float | None) -> RunState:
        rec = Recorder()
        begin(rec)
        begin_episode(rec, 0)
        where = {"env_id": 0, "epoch": 3, "slot_id": "stem", "seed_id": "s"}
        rec.say(T.SEED_STAGE_CHANGED, **where, from_="BLENDING", to="HOLDING", parameters=3000)
        if cost is not None:
            rec.say(
                T.COUNTERFACTUAL_COMPUTED,
                **where,
                removal_cost=cost,
                unit="points",
                examples=300,
                shared_prefix=True,
                passes=1.0,
                alpha=1.0,
            )
        epoch_done(rec, 0, 3, 50.0)
        return fold(rec.events)

    assert [_names(state(cost)) for cost in (None, 0.4, -0.4)] == [set(), set(), {"rent_without_gain"}]


def test_rank_rises_at_once_and_falls_after_calm() -> None:
    rec = Recorder()
    begin(rec, max_epochs=99)
    begin_episode(rec, 0, max_epochs=99)
    ranks = []
    state = fold(rec.events)
    for epoch in range(1, 9):
        rec.events.clear()
        epoch_done(rec, 0, epoch, 50.0 + epoch, train_loss=float("nan") if epoch == 2 else 1.0)
        ranks.append(fold(rec.events, state).environments[0].rank)
    assert ranks == [0, 1, 1, 1, 0, 0, 0, 0]


def test_stale_grows_with_silence() -> None:
    environment = EnvironmentFold(env=0, epoch_seconds=20.0)
    assert anomaly.stale_factor(environment, 99.0) is None
    factor = anomaly.stale_factor(environment, 200.0)
    assert factor is not None and factor.level == 0.5
    assert factor.text == "silent for 3 min 20 s, 2 times the longest wait that is usual"
    endless = anomaly.stale_factor(environment, 1.2e8)
    assert endless is not None and endless.text.startswith("silent for 1,388 d 21 h, 1,200,000 times")


def test_every_rule_speaks_with_its_figures() -> None:
    for factor in anomaly.factors(AnomalyFold(evidence=dict.fromkeys(anomaly.RULES, 4.0))):
        assert "4" in factor.text


def _obvious(state: RunState, environment: EnvironmentFold) -> dict[str, float]:
    """Every factor worked out whether it matters or not, and then compared with its threshold."""
    epoch, rules, found = environment.epoch or 0, anomaly.RULES, dict[str, float]()
    found["non_finite"] = len(environment.non_finite)
    for name, epochs in (
        ("panic", environment.panics),
        ("prune_storm", environment.prunes),
        ("gate_storm", environment.gate_failures),
    ):
        found[name] = sum(at > epoch - anomaly.RECENT for at in epochs)
    best, first, last = environment.best, environment.first_metric, environment.metric.last
    if best is not None and best.epoch is not None and environment.metric.seen >= anomaly.MIN_EPOCHS:
        found["stalled"] = epoch - best.epoch
        if first is not None and last is not None and math.isfinite(last) and best.value != first:
            lost = abs(float(best.value) - last)
            if lost > 2 * (environment.wobble or 0.0):
                found["falling"] = lost / abs(float(best.value) - first)
    train, typical = environment.facts.get("train_ms"), state.typical_train_ms
    if train is not None and math.isfinite(float(train.value)) and typical and len(state.environments) > 1:
        found["slow"] = float(train.value) / typical
    paying = [
        slot.seed
        for slot in environment.slots.values()
        if slot.seed is not None and slot.stage in ("HOLDING", "FOSSILIZED") and slot.seed.parameters
    ]
    costs = [seed.facts.get("removal_cost") for seed in paying]
    if environment.host_parameters and None not in costs and sum(float(cost.value) for cost in costs if cost) <= 0:
        found["rent_without_gain"] = sum(seed.parameters or 0 for seed in paying) / environment.host_parameters
    return {name: value for name, value in found.items() if value > rules[name].threshold}


@settings(max_examples=40, deadline=None)
@given(runs())
def test_factors_are_those_of_the_obvious_reckoning(events: list[TelemetryEvent]) -> None:
    state = fold(events)
    for environment in copy.deepcopy(state).environments.values():
        anomaly.update(state, environment)
        factors = anomaly.factors(environment.anomaly)
        assert {factor.name: factor.measured for factor in factors} == _obvious(state, environment)
        assert environment.score == sum(factor.weight * factor.level for factor in factors)
