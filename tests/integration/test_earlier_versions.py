"""What version 0.1.0 wrote can still be resumed, read and played. ``data/v0.1.0`` holds two interrupted runs of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from esper.karn.report import read_evidence
from esper.leyline import EnvSpec
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.scripts.main import main
from esper.tamiyo.policies import make_policy

KEPT = Path(__file__).parent.parent / "data" / "v0.1.0"


@pytest.mark.parametrize(("kind", "epochs"), [("heuristic", 60), ("ppo", 12)])
def test_an_interrupted_run_is_resumed_to_its_end(kind: str, epochs: int, tmp_path: Path) -> None:
    run = tmp_path / kind
    shutil.copytree(KEPT / kind, run)
    before = list(read_journal(run))
    assert before[-1].data["status"] == "preempted"
    assert main(["train", kind, "--resume", str(run), "--quiet"]) == 0
    events = list(read_journal(run))
    assert events[-1].event_type is T.TRAINING_ENDED and events[-1].data["status"] == "completed"
    (loaded,) = [event for event in events if event.event_type is T.CHECKPOINT_LOADED]
    cut = next(i for i, event in enumerate(events) if event.event_type is T.CHECKPOINT_LOADED)
    kept = [event.event_id for event in events[:cut] if event.producer == "train"]
    assert kept == [event.event_id for event in before if event.producer == "train"][: len(kept)]
    assert loaded.data["after_seq"] == len(kept) > 0
    assert max(event.epoch or 0 for event in events) == epochs


def test_a_journal_gives_its_evidence() -> None:
    evidence, damage = read_evidence(KEPT / "heuristic")
    assert not damage
    assert [(seed.slot, seed.blueprint) for seed in evidence.seeds] == [("block0", "conv3")]


def test_a_policy_is_played() -> None:
    policy = make_policy(str(KEPT / "policy.safetensors"))
    policy.reset([EnvSpec(0, 0, 0, 4)])
    assert policy.name
