"""Learning-rate schedules: hand-computed points and what must hold everywhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import UsageError
from esper.tolaria.schedules import ScheduleConfig, factor, host_factor, learning_rates, moment, seed_factor

configs = st.builds(
    ScheduleConfig,
    shape=st.sampled_from(["cosine", "constant", "wsd"]),
    warmup=st.floats(0, 5),
    seed_warmup=st.floats(0, 5),
    warmup_start=st.floats(0.01, 1),
    floor=st.floats(0, 1),
    host_restart=st.booleans(),
)


def test_cosine_by_hand() -> None:
    config = ScheduleConfig(floor=0.2)
    assert [factor(config, t, 8) for t in (0, 2, 4, 6, 8)] == pytest.approx(
        [1.0, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2, 0.2]
    )
    assert factor(config, 9, 8) == 0.2


def test_warmup_then_cosine_over_the_rest() -> None:
    config = ScheduleConfig(warmup=2, warmup_start=0.5)
    assert [host_factor(config, t, 10) for t in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 0.75, 1.0, 0.5, 0.0])


def test_seed_runs_its_own_cosine_from_birth() -> None:
    config = ScheduleConfig(seed_warmup=1, warmup_start=0.1)
    assert [seed_factor(config, t, 10, birth=5) for t in (5, 5.5, 6, 8, 10)] == pytest.approx([0.1, 0.55, 1, 0.5, 0])
    assert host_factor(config, 5, 10) == pytest.approx(0.5)


def test_host_restarts_at_the_latest_birth_only_when_asked() -> None:
    births = {"a": 2.0, "b": 6.0}
    assert learning_rates(ScheduleConfig(), 8, 10, births)[0] == host_factor(ScheduleConfig(), 8, 10)
    restarting = ScheduleConfig(host_restart=True)
    host, seeds = learning_rates(restarting, 8, 10, births)
    assert host == pytest.approx(0.5)
    assert seeds == {"a": pytest.approx(factor(restarting, 8, 10, start=2)), "b": pytest.approx(0.5)}
    assert learning_rates(restarting, 8, 10, {}, gone=[6.0])[0] == pytest.approx(0.5)
    assert host_factor(restarting, 4, 10, [6.0]) == factor(restarting, 4, 10), "a birth to come changes nothing yet"


def test_one_decay_begins_after_the_last_growth() -> None:
    config = ScheduleConfig("wsd", warmup=2, warmup_start=0.5, floor=0.1, decay=0.4)
    host = [host_factor(config, t, 10) for t in (0, 1, 2, 5, 6, 8, 10, 11)]
    assert host == pytest.approx([0.5, 0.75, 1.0, 1.0, 1.0, 0.55, 0.1, 0.1])
    # a birth in the decay puts it off, for the host and for every seed; an early one changes nothing
    late = ScheduleConfig("wsd", decay=0.4, seed_warmup=1, warmup_start=0.5)
    for time, rate in ((7, 0.75), (8, 1.0), (9, 1.0), (9.5, 0.5), (10, 0.0)):
        host_rate, seeds = learning_rates(late, time, 10, {"early": 2.0, "late": 8.0})
        assert (host_rate, seeds["early"]) == pytest.approx((rate, rate)), time
    assert learning_rates(late, 8.5, 10, {"late": 8.0})[1]["late"] == pytest.approx(0.75)
    assert learning_rates(late, 9.5, 10, {}, [8.0])[0] == 0.5, "one that was pruned put it off, too"
    assert host_factor(late, 10, 10, [10.0]) == 1.0 and host_factor(late, 11, 10, [10.0]) == 0.0


def test_granularity() -> None:
    assert [moment(ScheduleConfig(), 3, b, 4) for b in range(4)] == [3, 3.25, 3.5, 3.75]
    assert [moment(ScheduleConfig(granularity="epoch"), 3, b, 4) for b in range(4)] == [3] * 4


@given(configs, st.floats(0, 40), st.floats(0.5, 40), st.floats(0, 40))
def test_factors_stay_between_0_and_1_and_never_rise_after_warmup(
    config: ScheduleConfig, time: float, total: float, birth: float
) -> None:
    now = seed_factor(config, max(time, birth), total, birth)
    assert 0.0 <= now <= 1.0
    if max(time, birth) - birth >= config.seed_warmup:
        assert seed_factor(config, max(time, birth) + 0.25, total, birth) <= now + 1e-12
    assert 0.0 <= host_factor(config, time, total, [birth]) <= 1.0


@pytest.mark.parametrize(
    ("option", "value"),
    [("warmup", -1.0), ("floor", 1.5), ("warmup_start", -0.1), ("shape", "square"), ("granularity", "run")],
)
def test_nonsense_is_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        ScheduleConfig(**{option: value})
