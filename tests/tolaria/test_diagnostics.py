"""The deep look every K epochs: said on time, without a trace in what is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from esper.leyline import WAIT, Decision, EnvSpec, TelemetryEvent, UsageError
from esper.nissa.wire import decode, encode
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.tolaria.diagnostics import DiagnosticsConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "simic"))

from tiny import tiny


def run(profile: str | None, every: int = 2) -> tuple[list[TelemetryEvent], Any]:
    config = RunConfig(diagnostics_profile=profile, diagnostics_every=every, max_epochs=5, device="cpu")
    events: list[TelemetryEvent] = []
    executor = build_executor(workload(tiny(5), config), config, events.append)
    executor.reset([EnvSpec(env_id, 0, env_id, 5) for env_id in range(2)])
    for _ in range(5):
        reports = executor.step([Decision(WAIT, "")] * 2)
    return events, reports


def snapshots(events: list[TelemetryEvent]) -> list[TelemetryEvent]:
    return [event for event in events if event.data.get("kind") == "diagnostic_snapshot"]


@pytest.mark.parametrize("profile", ["minimal", "standard", "diagnostic", "research"])
def test_snapshots_come_every_k_epochs(profile: str) -> None:
    found = snapshots(run(profile)[0])
    assert [(event.env_id, event.epoch) for event in found] == [(0, 2), (1, 2), (0, 4), (1, 4)]
    for event in found:
        snapshot = event.data["snapshot"]
        assert snapshot["epoch"] == event.epoch and snapshot["val_loss"] > 0 and snapshot["gradient_norm"] > 0
        assert ("layers" in snapshot) == (profile != "minimal")
        assert ("classes" in snapshot) == ("sharpness" in snapshot) == (profile in ("diagnostic", "research"))
        decode(encode(event))


def test_nothing_changes_in_what_is_trained() -> None:
    without, watched = (run(profile)[1] for profile in (None, "research"))
    assert [(r.view.loss, r.view.metric, r.train.loss) for r in without] == [
        (r.view.loss, r.view.metric, r.train.loss) for r in watched
    ]


def test_no_profile_no_diagnostics() -> None:
    assert not snapshots(run(None)[0])
    assert DiagnosticsConfig.of(None, 3) is None
    with pytest.raises(UsageError, match="0 epochs"):
        DiagnosticsConfig.of("minimal", 0)
    with pytest.raises(UsageError, match="profile"):
        DiagnosticsConfig.of("minmal", 1)
