"""Vital signs: healthy runs, however noisy, are left alone; sick ones are found within two epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import Metric
from esper.tolaria.vitals import Vitals, VitalsConfig

ACCURACY = Metric("accuracy", "%", higher_is_better=True, chance=10.0)
ERROR = Metric("perplexity", "", higher_is_better=False, chance=100.0)
Epoch = tuple[float, float, float]
Curve = Callable[[np.random.Generator, int], Iterator[Epoch]]


def learning(rng: np.random.Generator, epochs: int) -> Iterator[Epoch]:
    """Any speed, any final loss, up to 20 % of noise, and now and then an epoch with twice the validation loss."""
    speed, floor, noise = rng.uniform(1, 30), rng.choice([0.0005, 0.05, 0.5, 2.0]), rng.uniform(0.01, 0.2)
    best = rng.uniform(12, 99)
    for epoch in range(epochs):
        left = math.exp(-epoch / speed)
        loss = floor + (2.3 - floor) * left
        bad = 2.0 if rng.uniform() < 0.01 else 1.0
        yield (
            loss * math.exp(noise * rng.standard_normal()),
            loss * math.exp(noise * rng.standard_normal()) * bad,
            10 + (best - 10) * (1 - left) + 10 * noise * rng.standard_normal(),
        )


def stuck_at_chance(rng: np.random.Generator, epochs: int) -> Iterator[Epoch]:
    for _ in range(epochs):
        yield 2.3 + 0.02 * rng.standard_normal(), 2.3 + 0.05 * rng.standard_normal(), 10 + 2 * rng.standard_normal()


def overfitting(rng: np.random.Generator, epochs: int) -> Iterator[Epoch]:
    """The validation loss climbs to several times its best while the training loss vanishes."""
    for epoch in range(epochs):
        noise = math.exp(0.15 * rng.standard_normal())
        yield 2.3 * math.exp(-epoch / 4), (0.5 + 0.08 * epoch) * noise, 60 + 2 * rng.standard_normal()


def restarting(rng: np.random.Generator, epochs: int) -> Iterator[Epoch]:
    """A learning rate that restarts every ten epochs throws the run back each time."""
    for epoch in range(epochs):
        back = 0.35 * math.exp(-(epoch % 10) / 2) if epoch >= 10 else 0.0
        loss = 0.4 + 1.9 * math.exp(-epoch / 4) + back
        yield loss + 0.02 * rng.standard_normal(), loss + 0.03 * rng.standard_normal(), 80 - 30 * back


def run(epochs: Iterator[Epoch], consecutive: int = 2) -> tuple[int, str] | None:
    """Epoch and reason of the first panic."""
    vitals, ill = Vitals(ACCURACY, VitalsConfig()), 0
    for epoch, values in enumerate(epochs, start=1):
        sign = vitals.judge(*values)
        if sign is None:
            vitals.accept(*values)
            ill = 0
            continue
        ill += 1
        if sign.certain or ill >= consecutive:
            return epoch, sign.reason
    return None


@pytest.mark.parametrize("curve", [learning, stuck_at_chance, overfitting, restarting])
def test_a_thousand_healthy_runs_raise_no_panic(curve: Curve) -> None:
    runs = 1000 // 4
    panics = {seed: found for seed in range(runs) if (found := run(curve(np.random.default_rng(seed), 40)))}
    assert panics == {}


@pytest.mark.slow
@pytest.mark.parametrize("curve", [learning, stuck_at_chance, overfitting, restarting])
def test_thousands_of_healthy_runs(curve: Curve) -> None:
    panics = {seed: found for seed in range(5000) if (found := run(curve(np.random.default_rng(seed), 60)))}
    assert len(panics) <= 5, panics


def healthy(rng: np.random.Generator, epoch: int) -> Epoch:
    left = math.exp(-epoch / 6)
    return (
        0.3 + 1.5 * left + 0.03 * rng.standard_normal(),
        0.5 + 1.5 * left + 0.05 * rng.standard_normal(),
        80 - 70 * left + 1.5 * rng.standard_normal(),
    )


AT = 20
SICK: dict[str, tuple[Callable[[Epoch, int], Epoch], int, str]] = {
    "forgets everything": (lambda e, since: (2.3, 2.3, 10.4), 0, "collapse_to_chance"),
    "loss triples every epoch": (
        lambda e, since: (e[0] * 3 ** (since + 1), e[1] * 3 ** (since + 1), e[2]),
        1,
        "divergence",
    ),
    "loses half": (lambda e, since: (e[0] + 1.0, e[1] + 1.0, e[2] - 35), 1, "divergence"),
    "validation only": (lambda e, since: (e[0], e[1] + 1.2, e[2] - 30), 1, "divergence"),
    "loss jumps to 1e6": (lambda e, since: (1e6, 1e6, e[2]), 0, "divergence"),
    "creeps up by a third each epoch": (
        lambda e, since: (e[0] * 1.3 ** (since + 1), e[1] * 1.3 ** (since + 1), e[2]),
        10,
        "divergence",
    ),
}


@pytest.mark.parametrize(("spoil", "delay", "reason"), SICK.values(), ids=SICK.keys())
def test_sick_runs_are_found(spoil: Callable[[Epoch, int], Epoch], delay: int, reason: str) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        curve = (spoil(e, i - AT) if i >= AT else e for i, e in ((i, healthy(rng, i)) for i in range(1, 41)))
        found = run(curve)
        assert found is not None and AT <= found[0] <= AT + delay and found[1] == reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((math.nan, 1.0, 50.0), "non_finite_loss"),
        ((1.0, math.inf, 50.0), "non_finite_loss"),
        ((1.0, 1.0, math.nan), "non_finite_metric"),
        ((None, -math.inf, None), "non_finite_loss"),
    ],
)
def test_non_finite_values_need_no_history(values: Any, reason: str) -> None:
    sign = Vitals(ACCURACY, VitalsConfig()).judge(*values)
    assert sign is not None and sign.certain and sign.reason == reason


def test_early_explosion_is_found_before_there_is_a_spread() -> None:
    vitals = Vitals(ACCURACY, VitalsConfig())
    vitals.accept(2.3, 2.3, 10.0)
    assert vitals.judge(20.0, 20.0, 10.0) is None
    sign = vitals.judge(30.0, 2.3, 10.0)
    assert sign is not None and sign.certain and sign.threshold == pytest.approx(25.3)


def test_collapse_needs_a_clear_lead_and_a_chance_level() -> None:
    def collapsed(metric: Metric, before: list[float], now: float) -> bool:
        vitals = Vitals(metric, VitalsConfig())
        for value in before:
            vitals.accept(None, None, value)
        return vitals.judge(None, None, now) is not None

    steady = [50.0, 51.0, 49.0, 50.0, 51.0, 50.0]
    assert collapsed(ACCURACY, steady, 10.5)
    assert not collapsed(ACCURACY, steady, 30.0)
    assert not collapsed(ACCURACY, steady[:4], 10.5), "too short a history"
    assert not collapsed(ACCURACY, [11.0, 9.0, 12.0, 10.0, 13.0, 9.5], 10.0), "never clearly above chance"
    assert not collapsed(Metric("accuracy", "%"), steady, 10.0), "no chance level"
    assert collapsed(ERROR, [20.0, 21.0, 20.0, 19.0, 20.0, 20.0], 95.0)
    assert not collapsed(ERROR, [20.0, 21.0, 20.0, 19.0, 20.0, 20.0], 5.0)


def test_scale_does_not_matter() -> None:
    """No constant of a task: the same run in other units is judged alike."""
    for scale in (1e-6, 1e6):
        small, large = Vitals(ACCURACY, VitalsConfig()), Vitals(ACCURACY, VitalsConfig())
        rng = np.random.default_rng(3)
        for epoch in range(1, 15):
            train, val, metric = healthy(rng, epoch)
            small.accept(train, val, metric)
            large.accept(train * scale, val * scale, metric)
        for value in (0.5, 0.9, 1.5, 5.0):
            first, second = small.judge(value, None, None), large.judge(value * scale, None, None)
            assert (first is None) == (second is None)
            if first is not None and second is not None:
                assert second.threshold == pytest.approx(first.threshold * scale) and first.certain == second.certain


@given(
    st.lists(st.tuples(*[st.floats(-10, 10) | st.none()] * 3), max_size=40), st.tuples(*[st.floats() | st.none()] * 3)
)
def test_judgement_survives_a_checkpoint_and_changes_nothing(history: list[Any], now: Any) -> None:
    vitals = Vitals(ACCURACY, VitalsConfig())
    for values in history:
        vitals.accept(*values)
    other = Vitals(ACCURACY, VitalsConfig())
    other.load(vitals.state())
    assert repr(vitals.judge(*now)) == repr(other.judge(*now)) == repr(vitals.judge(*now))
    assert vitals.state() == other.state()
