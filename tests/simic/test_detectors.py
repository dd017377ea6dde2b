"""Each detector on figures that cross its threshold, that do not, and that were not measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from esper.leyline import TelemetryEventType as T
from esper.leyline import UsageError
from esper.nissa.wire import decode, encode
from esper.simic import detectors
from esper.simic.detectors import DetectorConfig, PolicyMonitor, RoundFigures
from esper.simic.ppo import HeadReport, UpdateReport

CONFIG = DetectorConfig()
QUIET = RoundFigures((1.0, 1.0), (1.0, 1.0), 20.0)


def report(**changes: Any) -> UpdateReport:
    healthy = UpdateReport(
        lr=1e-3, update_time_ms=1.0, steps=80, epochs_run=4, optimizer_steps=8, skipped_steps=0, stopped_by_kl=False,
        policy_loss=0.0, value_loss=0.1, entropy=2.0, heads={"op": HeadReport(1.0, 1.5, 1.0)}, grad_norm=0.5, kl=0.01,
        clip_fraction=0.1, ratio_min=0.8, ratio_max=1.2, stale_log_prob=0.0, explained_variance=0.5, value_mean=0.0,
        return_mean=0.0, return_std=1.0, advantage_mean=0.0, advantage_std=1.0, update_macs=1,
    )  # fmt: skip
    return replace(healthy, **changes)


def kinds(findings: list[detectors.Finding]) -> list[T]:
    return [finding.event_type for finding in findings]


def test_ratios() -> None:
    assert not detectors.ratios(report(), CONFIG)
    wild = detectors.ratios(report(ratio_max=9.0, ratio_min=0.01), CONFIG)
    assert kinds(wild) == [T.RATIO_EXPLOSION_DETECTED, T.RATIO_COLLAPSE_DETECTED]


@pytest.mark.parametrize(
    ("history", "found"), [([-1.0] * 5, True), ([-1.0] * 4, False), ([-1.0] * 4 + [0.1], False), ([], False)]
)
def test_value_collapse(history: list[float], found: bool) -> None:
    assert (detectors.value_collapse(history, CONFIG) is not None) is found


@pytest.mark.parametrize("broken", [{"skipped_steps": 1}, {"kl": math.nan}, {"grad_norm": math.inf}])
def test_numerical_instability(broken: dict[str, Any]) -> None:
    assert detectors.numerical_instability(report()) is None
    assert detectors.numerical_instability(report(grad_norm=None)) is None
    finding = detectors.numerical_instability(report(**broken))
    assert finding is not None and finding.severity == "error"


def test_head_collapse() -> None:
    assert detectors.head_collapse("slot", [0.5, 0.01, 0.01], CONFIG) is None
    assert detectors.head_collapse("slot", [0.01, 0.01], CONFIG) is None
    finding = detectors.head_collapse("slot", [0.5, 0.01, 0.01, 0.0], CONFIG)
    assert finding is not None and finding.head == "slot"


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [(0.0, 9.0, T.IMPROVEMENT_DETECTED), (9.0, 0.0, T.DEGRADATION_DETECTED), (5.0, 5.0, T.PLATEAU_DETECTED)],
)
def test_trends(before: float, after: float, kind: T) -> None:
    noise = [0.1, -0.1] * 4
    gains = [before + n for n in noise] + [after + n for n in noise]
    finding = detectors.trend(gains, CONFIG)
    assert finding is not None and finding.event_type is kind
    assert detectors.trend(gains[1:], CONFIG) is None
    assert detectors.trend([*gains[:-1], math.nan], CONFIG) is None


def test_reward_hacking() -> None:
    assert detectors.reward_hacking((5.0, 6.0, 7.0), (5.0, 6.0, 7.0), CONFIG) is None
    assert detectors.reward_hacking((50.0,), (0.0,), CONFIG) is None
    assert detectors.reward_hacking((50.0, math.nan), (0.0, 0.0), CONFIG) is None
    finding = detectors.reward_hacking((20.0, 21.0, 22.0), (1.0, 1.0, 2.0), CONFIG)
    assert finding is not None and finding.measured > 15


def test_memory_and_slowdown() -> None:
    assert detectors.memory(50, 100, CONFIG) is None and detectors.memory(95, 100, CONFIG) is not None
    assert detectors.slowdown([10.0] * 5, CONFIG) is None
    assert detectors.slowdown([10.0] * 5 + [19.0], CONFIG) is None
    assert detectors.slowdown([10.0] * 5 + [21.0], CONFIG) is not None
    taken = detectors.memory_taken()
    assert taken is None or 0 < taken[0] < taken[1]


def test_a_finding_is_said_when_it_is_new() -> None:
    watch = PolicyMonitor()
    wild = report(ratio_max=9.0)
    said = [kinds(watch.look(each, QUIET)) for each in (report(), wild, wild, report(), wild)]
    assert said == [[], [T.RATIO_EXPLOSION_DETECTED], [], [], [T.RATIO_EXPLOSION_DETECTED]]


def test_what_was_not_measured_is_not_judged() -> None:
    watch = PolicyMonitor()
    for _ in range(20):
        nothing = watch.look(report(explained_variance=None, grad_norm=None, heads={}), RoundFigures((), (), None))
        assert nothing == []


def test_a_watch_survives_a_checkpoint() -> None:
    watch, other = PolicyMonitor(), PolicyMonitor()
    wild = report(ratio_max=9.0)
    watch.look(wild, QUIET)
    other.load(json.loads(json.dumps(watch.state())))
    assert other == watch and other.look(wild, QUIET) == []


def test_findings_travel() -> None:
    (finding,) = detectors.ratios(report(ratio_max=math.inf), CONFIG)
    event = decode(encode(finding.event(4)))
    assert event.data["measured"] == math.inf and event.data["round"] == 4 and event.severity == "warning"


def test_windows_have_a_least_length() -> None:
    with pytest.raises(UsageError, match="trend_rounds"):
        DetectorConfig(trend_rounds=1)
