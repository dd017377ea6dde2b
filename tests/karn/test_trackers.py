from __future__ import annotations

import math
import struct
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from esper.karn.mirror import Point
from esper.karn.trackers import MLFLOW_BATCH, TRACKERS, Mlflow, TensorBoard, Wandb
from esper.leyline import MissingExtraError, UsageError
from esper.scripts.mirror import main
from karn.journals import write_run
from karn.streams import story

POINTS = [
    Point("env0", "validation_metric", 1, 51.0, 100.0),
    Point("env0", "validation_loss", 1, math.nan, 100.0),
    Point("env1", "validation_metric", 1, 49.0, 101.0),
    Point("env0", "validation_metric", 2, 52.0, 102.0),
]


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_extra_is_named_in_one_line(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"in a checkout of Esper, pip install '\.\[{name}\]'$"):
        TRACKERS[name](tmp_path, "run", {}, None)
    assert not list(tmp_path.iterdir())


def _scalars(folder: Path) -> list[tuple[str, int, float, float]]:
    """Tag, step, value and wall clock of every scalar in the event files of ``folder``, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [
                (v.tag, event.step, v.simple_value, event.wall_time)
                for v in event.summary.value
                if v.WhichOneof("value") == "simple_value"
            ]
            at += length + 16
    return found


def test_tensorboard_gets_a_run_per_group(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra 'tensorboard'")
    board = TensorBoard(tmp_path, "run-1", {"lr": 0.1}, None)
    board.write(POINTS)
    board.close("completed")
    first, nan, second = _scalars(tmp_path / "tensorboard" / "env0")
    assert (first, second) == (("validation_metric", 1, 51.0, 100.0), ("validation_metric", 2, 52.0, 102.0))
    assert nan[0] == "validation_loss" and math.isnan(nan[2])
    assert _scalars(tmp_path / "tensorboard" / "env1") == [("validation_metric", 1, 49.0, 101.0)]
    with pytest.raises(UsageError, match="something is there already"):
        TensorBoard(tmp_path, "run-1", {}, None)


def test_the_command_writes_a_run_to_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra 'tensorboard'")
    run = write_run(tmp_path, story())
    assert main([str(run), "--to", "tensorboard", "--into", str(tmp_path / "board")]) == 0
    said = capsys.readouterr().out.splitlines()
    curve = [point for point in _scalars(tmp_path / "board" / "env0") if point[0] == "validation_metric"]
    assert said[0] == f"tensorboard: {tmp_path / 'board'}" and said[1].endswith(" points")
    assert [step for _, step, _, _ in curve] == list(range(1, len(curve) + 1)) and len(curve) > 3


class FakeWandb(ModuleType):
    """The four calls that the adapter makes, as W&B documents them."""

    class Error(Exception):
        pass

    def __init__(self, refuses: str = "") -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.refuses = refuses

    def init(self, *, project: str, id: str, name: str, config: dict[str, Any], dir: str) -> FakeWandb:
        if self.refuses:
            raise self.Error(self.refuses)
        self.calls.append(("init", (project, id, name, config, dir)))
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.calls.append(("define", (name, step_metric)))

    def log(self, row: dict[str, float]) -> None:
        self.calls.append(("log", row))

    def finish(self, *, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


@pytest.mark.parametrize("status, code", [("completed", 0), ("failed", 1), (None, 1)])
def test_wandb_has_a_step_for_each_group(
    status: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = Wandb(tmp_path, "run-1", {"lr": 0.1}, None)
    run.write([POINTS[0], *POINTS[2:]])
    run.close(status)
    assert fake.calls == [
        ("init", ("esper", "run-1", "run-1", {"lr": 0.1}, str(tmp_path))),
        ("define", ("env0/*", "env0/step")),
        ("log", {"env0/step": 1, "env0/validation_metric": 51.0}),
        ("define", ("env1/*", "env1/step")),
        ("log", {"env1/step": 1, "env1/validation_metric": 49.0}),
        ("log", {"env0/step": 2, "env0/validation_metric": 52.0}),
        ("finish", code),
    ]


class FakeMlflow(ModuleType):
    """``MlflowClient`` with the five calls that the adapter makes."""

    class MlflowException(Exception):
        pass

    def __init__(self, known: bool, refuses: str = "") -> None:
        super().__init__("mlflow")
        self.known, self.refuses, self.calls = known, refuses, list[tuple[str, Any]]()
        self.entities = ModuleType("mlflow.entities")
        self.entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)  # type: ignore[attr-defined]
        self.entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]

    def MlflowClient(self, tracking_uri: str | None) -> FakeMlflow:
        if self.refuses:
            raise self.MlflowException(self.refuses)
        self.calls.append(("client", tracking_uri))
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id="7") if self.known else None

    def create_experiment(self, name: str) -> str:
        self.calls.append(("experiment", name))
        return "8"

    def create_run(self, experiment_id: str, *, run_name: str) -> SimpleNamespace:
        self.calls.append(("run", (experiment_id, run_name)))
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.calls.append(("batch", (run_id, list(metrics), list(params))))

    def set_terminated(self, run_id: str, *, status: str) -> None:
        self.calls.append(("end", (run_id, status)))


@pytest.mark.parametrize("status, name", [("completed", "FINISHED"), ("failed", "FAILED"), (None, "KILLED")])
def test_mlflow_gets_batches_and_the_status(
    status: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMlflow(known=status is None)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    run = Mlflow(tmp_path, "run-1", {"lr": 0.1}, "file:///somewhere")
    run.write([POINTS[0]] * (MLFLOW_BATCH + 1))
    run.close(status)
    made = [("run", ("7", "run-1"))] if fake.known else [("experiment", "esper"), ("run", ("8", "run-1"))]
    metric = ("env0/validation_metric", 51.0, 100_000, 1)
    assert fake.calls == [
        ("client", "file:///somewhere"),
        *made,
        ("batch", ("r", [], [("lr", "0.1")])),
        ("batch", ("r", [metric] * MLFLOW_BATCH, [])),
        ("batch", ("r", [metric], [])),
        ("end", ("r", name)),
    ]


def test_a_tracker_that_refuses_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow(known=False, refuses="unsupported URI\nand a long story")
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("no API key\nand a long story"))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    with pytest.raises(UsageError, match="^wandb, project esper: no API key$"):
        Wandb(tmp_path, "run-1", {}, None)
    with pytest.raises(UsageError, match="^mlflow, tracking URI abc://: unsupported URI$"):
        Mlflow(tmp_path, "run-1", {}, "abc://")


def test_the_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra 'wandb'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = Wandb(tmp_path, "run-1", {"lr": 0.1}, None)
    run.write(POINTS)
    run.close("completed")
    (log,) = tmp_path.glob("wandb/offline-run-*/run-run-1.wandb")
    deadline = time.monotonic() + 30.0
    while b"env0/validation_metric" not in log.read_bytes():  # W&B's own process writes it, a little later
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_real_mlflow_in_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra 'mlflow'")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    run = Mlflow(tmp_path, "run-1", {"lr": 0.1}, store)
    run.write(POINTS)
    run.close("completed")
    client = MlflowClient(tracking_uri=store)
    (found,) = client.search_runs([client.get_experiment_by_name("esper").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params == {"lr": "0.1"}
    history = client.get_metric_history(found.info.run_id, "env0/validation_metric")
    assert [(metric.step, metric.value) for metric in history] == [(1, 51.0), (2, 52.0)]
