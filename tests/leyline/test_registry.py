"""No event without a payload, a producer in the code, a consumer in a view, and a line in the audit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from esper.karn.aggregator import HANDLERS
from esper.leyline import REGISTRY, TelemetryEventType

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "esper"

NAMES = frozenset(
    """
    SEED_GERMINATED SEED_GATE_EVALUATED SEED_STAGE_CHANGED SEED_ALPHA_RETARGETED SEED_FOSSILIZED SEED_PRUNED
    TRANSITION_VETOED ISOLATION_VIOLATION TRAINING_STARTED TRAINING_ENDED EPISODE_STARTED EPISODE_ENDED EPOCH_COMPLETED
    COMMAND_ISSUED COMMAND_EXECUTED COMMAND_FAILED MODEL_EXPORTED COUNTERFACTUAL_COMPUTED COUNTERFACTUAL_UNAVAILABLE
    ANALYTICS_SNAPSHOT COMPUTE_SPENT GOVERNOR_SNAPSHOT GOVERNOR_PANIC GOVERNOR_ROLLBACK CHECKPOINT_SAVED
    CHECKPOINT_LOADED TELEMETRY_DROPPED TELEMETRY_LEVEL_SET
    """.split()
)
"""Names that journals already hold; one that is gone or renamed could not be read any more."""


def test_names_are_frozen() -> None:
    assert {kind.name for kind in TelemetryEventType} >= NAMES
    assert all(kind.value == kind.name for kind in TelemetryEventType)


def test_every_event_has_one_payload_and_one_handler() -> None:
    assert set(REGISTRY) == set(HANDLERS) == set(TelemetryEventType)


@pytest.fixture(scope="module")
def producers() -> str:
    """The source of everything that may emit."""
    packages = ("kasmina", "nissa", "tolaria", "simic", "scripts")
    files = [path for package in packages for path in (SOURCE / package).rglob("*.py")] + [SOURCE / "library.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize("kind", list(TelemetryEventType), ids=lambda kind: kind.name)
def test_every_event_has_a_producer(kind: TelemetryEventType, producers: str) -> None:
    assert re.search(rf"\b(?:T|TelemetryEventType|EventType)\.{kind.name}\b", producers)


def test_the_audit_is_fresh() -> None:
    check = subprocess.run([sys.executable, str(ROOT / "tools" / "audit.py"), "--check"], check=False)
    assert check.returncode == 0, "run python tools/audit.py"


def test_the_contracts_load_no_torch() -> None:
    modules = ("esper", "esper.leyline", "esper.nissa.reader", "esper.karn.aggregator", "esper.karn.report")
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
