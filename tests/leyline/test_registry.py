"""No event without a payload, a producer in the code, a consumer in a view, and a line in the audit."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esper.karn.aggregator import HANDLERS
from esper.leyline import REGISTRY, TelemetryEventType

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "esper"
AUDIT = ROOT / "tools" / "audit.py"
IMPORT = "from esper.leyline import TelemetryEventType as T\n"

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


@pytest.mark.parametrize("kind", list(TelemetryEventType), ids=lambda kind: kind.name)
def test_every_event_has_producers_and_says_what_it_is(kind: TelemetryEventType) -> None:
    spec = REGISTRY[kind]
    assert spec.producers
    assert all((SOURCE / f"{producer.replace('.', '/')}.py").is_file() for producer in spec.producers)
    said = " ".join(spec.description.split())
    assert all(" ".join(member.__doc__.split()) in said for member in spec.members), "a payload has no docstring"


def test_what_is_generated_is_fresh() -> None:
    check = subprocess.run([sys.executable, str(AUDIT), "--check"], check=False)
    assert check.returncode == 0, "run python tools/audit.py"


def test_a_module_that_names_another_event_makes_it_stale(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for tool in AUDIT.parent.glob("*.py"):
        shutil.copy(tool, tmp_path / "tools")
    shutil.copytree(SOURCE / "leyline", tmp_path / "src" / "esper" / "leyline")
    (tmp_path / "src" / "esper" / "mine.py").write_text(f"{IMPORT}emit(T.SEED_PRUNED)\n", encoding="utf-8")
    tool = [sys.executable, str(tmp_path / "tools" / "audit.py")]
    before = subprocess.run([*tool, "--check"], check=False, capture_output=True, text=True)
    assert before.returncode == 1 and "producers.py is not what the source says" in before.stdout
    subprocess.run(tool, check=True)
    assert subprocess.run([*tool, "--check"], check=False).returncode == 0
    assert '"SEED_PRUNED": ("mine",)' in (tmp_path / "src/esper/leyline/payloads/producers.py").read_text()


@pytest.fixture(scope="module")
def emitted() -> Callable[..., set[str]]:
    """The derivation of producers from source."""
    spec = importlib.util.spec_from_file_location("producers", AUDIT.with_name("producers.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.emitted


@pytest.mark.parametrize(
    "code",
    [
        "hub.emit(TelemetryEvent(event_type=T.SEED_PRUNED))",
        "session.say(T.SEED_PRUNED, reason='')",
        "self._say(T.SEED_PRUNED if ok else T.SEED_FOSSILIZED, {})",
        "kind, word = (T.SEED_PRUNED, 'gone')",
        "def which():\n    return T.SEED_PRUNED",
    ],
)
def test_who_names_an_event_emits_it(code: str, emitted: Callable[..., set[str]]) -> None:
    assert "SEED_PRUNED" in emitted(IMPORT + code)
    assert "SEED_PRUNED" in emitted(f"from esper import leyline\n{code.replace('T.', 'leyline.TelemetryEventType.')}")
    assert emitted(code) == set(), "T is something else there"


@pytest.mark.parametrize(
    "code",
    [
        "if event.event_type is T.SEED_PRUNED: pass",
        "if event.event_type in (T.SEED_PRUNED, T.SEED_FOSSILIZED): pass",
        "HANDLERS = {T.SEED_PRUNED: pruned}",
        "SYNC_ON = frozenset({T.SEED_PRUNED})",
        "spec = REGISTRY[T.SEED_PRUNED]",
        "match kind:\n    case T.SEED_PRUNED:\n        pass",
        "self._say(kind, data)",
    ],
)
def test_who_recognises_an_event_or_hands_it_on_does_not(code: str, emitted: Callable[..., set[str]]) -> None:
    assert emitted(IMPORT + code) == set()


def test_who_makes_a_snapshot_of_a_kind_is_found(emitted: Callable[..., set[str]]) -> None:
    kinds = frozenset({"throughput"})
    assert emitted("data = {'kind': 'throughput'}", kinds) == emitted("make(kind='throughput')", kinds) == kinds
    assert emitted("data['kind'] == 'throughput', {'kind': 'other'}", kinds) == set()


def test_the_contracts_load_no_numpy() -> None:
    code = "import sys, esper.leyline; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_contracts_load_no_torch() -> None:
    modules = ("esper", "esper.leyline", "esper.nissa.reader", "esper.karn.aggregator", "esper.karn.report")
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
