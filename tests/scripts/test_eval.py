"""``esper eval`` from a saved policy to the table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from esper.leyline import DataError, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.scripts.eval import main
from esper.simic.vectorized import fresh_network
from esper.tamiyo.policies.learned import save_policy


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "policy.safetensors"
    save_policy(path, fresh_network(0, cells=8), {"task": "tiny:tiny", "episode_length": 4, "rounds": 0})
    return path


def test_a_policy_stands_beside_its_controls(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--episodes", "3", "--search-seeds", "1", "--device", "cpu", "--run-dir", str(tmp_path / "eval")]
    with pytest.raises(UsageError, match="only where named: --task tiny:tiny"):
        main([str(policy.parent), *flags])
    assert main([str(policy.parent), *flags, "--task", "tiny:tiny"]) == 0
    shown = capsys.readouterr().out
    assert "best of" in shown
    for arm in ("policy", "static", "random", "schedule", "heuristic"):
        assert f" {arm} " in shown
    events = list(read_journal(tmp_path / "eval", validate=True))
    ended = [event for event in events if event.event_type is T.EPISODE_ENDED]
    assert len(ended) == 15 and all(math.isfinite(event.data["test_metric"]) for event in ended)
    seeds = {event.data["arm"]: [] for event in ended}
    for event in ended:
        seeds[event.data["arm"]].append(event.data["seed"])
    assert len({tuple(each) for each in seeds.values()}) == 1, "every arm plays the same seeds"


def test_what_is_no_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        main([str(tmp_path / "nowhere.safetensors")])
