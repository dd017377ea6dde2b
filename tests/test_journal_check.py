"""An event that is not as the contract says fails the test whose journal it is in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter
from journal_check import BestSeen, undeclared

DECLARED = {"path": "m", "parameters": 3, "max_abs_difference": 0.0, "formats": []}
WRITES = """
import subprocess, sys
import pytest
from test_journal_check import DECLARED, write
STRANGE = {**DECLARED, "colour": "red"}
CODE = "import sys, test_journal_check as t; t.write(sys.argv[1], {**t.DECLARED, 'colour': 'red'})"
BY_ANOTHER = [sys.executable, "-c", CODE]

def test_declared(tmp_path): write(tmp_path, DECLARED)
def test_strange(tmp_path): write(tmp_path, STRANGE)
def test_by_another_process(tmp_path): subprocess.run([*BY_ANOTHER, str(tmp_path)], check=True)
@pytest.mark.free_text
def test_on_purpose(tmp_path): write(tmp_path, STRANGE)
def test_for_several(tmp_path_factory): write(tmp_path_factory.mktemp("several"), STRANGE)
"""


def write(directory: Path | str, *payloads: dict[str, object]) -> Path:
    """A journal with one event for each payload."""
    with NissaHub() as hub:
        hub.add_sink(JournalWriter(directory, "run"))
        for data in payloads:
            hub.emit(TelemetryEvent(event_type=T.MODEL_EXPORTED, data=data))
    return next(Path(directory).glob("events-*.jsonl"))


@pytest.mark.free_text
def test_what_the_contract_does_not_have_is_named_with_its_place(tmp_path: Path) -> None:
    lacking = {key: value for key, value in DECLARED.items() if key != "path"}
    path = write(tmp_path, DECLARED, DECLARED | {"colour": "red"}, lacking, DECLARED | {"parameters": "many"})
    faults = undeclared(tmp_path)
    assert len(faults) == 3 and all(fault.startswith(f"{path}: byte ") for fault in faults)
    assert "unknown key colour" in faults[0] and "`path`" in faults[1] and "$.parameters" in faults[2]
    assert undeclared(tmp_path, {tmp_path}) == []


def test_what_was_damaged_or_not_committed_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, DECLARED | {"colour": "red"})
    body = path.read_bytes()
    path.write_bytes(body.replace(b'"red"', b'"blu"'))
    assert undeclared(tmp_path) == [], "the batch is not what was committed"
    path.write_bytes(body[: body.index(b'{"commit"')])
    assert undeclared(tmp_path) == [], "the batch has no commit line"


@pytest.mark.free_text
def test_a_test_that_writes_it_fails(tmp_path: Path) -> None:
    (tmp_path / "test_writes.py").write_text(WRITES, encoding="utf-8")
    here = Path(__file__).parent
    options = ["-q", "-p", "conftest", "-p", "no:cacheprovider", "--strict-markers", "--import-mode=importlib"]
    where = [
        "-c",
        str(here.parent / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        "--basetemp",
        str(tmp_path / "temp"),
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *where, str(tmp_path / "test_writes.py")],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(here), "PATH": "", "ESPER_HYPOTHESIS": "quick"},
    )
    errors = [line.split(" - ")[0] for line in ran.stdout.splitlines() if line.startswith("ERROR ")]
    assert [error.split("::")[-1] for error in errors] == [
        "test_strange",
        "test_by_another_process",
        "test_for_several",
    ]
    assert "5 passed" in ran.stdout and "unknown key colour" in ran.stdout


def test_a_network_that_is_worse_than_one_that_was_validated_is_told() -> None:
    def event(kind: T, epoch: int = 0, **data: object) -> TelemetryEvent:
        return TelemetryEvent(event_type=kind, env_id=0, episode=0, epoch=epoch, data=data)

    def told(delivered: float, *, higher: bool, rolled_back: int = 0) -> list[str]:
        seen = BestSeen()
        events = [event(T.TRAINING_STARTED, metric={"higher_is_better": higher}), event(T.EPISODE_STARTED)]
        for epoch, metric in enumerate((3.0, 5.0, 1.0), start=1):
            events += [event(T.GOVERNOR_ROLLBACK, epoch)] if epoch == rolled_back else []
            events.append(event(T.EPOCH_COMPLETED, epoch, validation_metric=metric))
        events.append(event(T.EPISODE_ENDED, 3, validation_metric=delivered, delivered="last"))
        return [fault for each in events if (fault := seen.worse(each)) is not None]

    assert told(5.0, higher=True) == [] and told(1.0, higher=False) == []
    (fault,) = told(3.0, higher=True)
    assert "delivered at 3.0, where 5.0" in fault
    assert len(told(3.0, higher=False)) == 1
    assert told(3.0, higher=True, rolled_back=2) == [], "that network is gone"
