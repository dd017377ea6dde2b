"""The page of ``docs/recipes`` about Ray Train: its code is run, and a worker killed in the midst of an epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_runs import VALIDATION, Deadly, make_model
from test_recipes import code

from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from ranked_loop import committed

# Ray leaves log files open
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]
HERE = Path(__file__).parent


@pytest.fixture
def cluster() -> Iterator[None]:
    """This machine, with a place for two workers, which import what stands beside these tests."""
    with pytest.MonkeyPatch.context() as environment:
        folders = [HERE, HERE.parent, os.environ.get("PYTHONPATH", "")]
        environment.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        head = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        ray.init(address=head.address, log_to_driver=False)
        yield
        ray.shutdown()
        head.shutdown()


def follow(folder: Path, killed: Path | None) -> tuple[Any, Path]:
    """Ray's result, and the run directory."""
    folder.mkdir()
    names = {"__name__": "__main__", "make_model": make_model, "epochs": 8, "folder": str(folder)}
    names |= {"train_set": Deadly(killed), "val_set": VALIDATION}
    exec(code("ray"), names)
    (run,) = (folder / "runs").iterdir()
    return names["result"], run


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_made_anew_and_the_run_goes_on(tmp_path: Path) -> None:
    result, run = follow(tmp_path / "killed", tmp_path / "once")
    assert (tmp_path / "once").exists() and result.error is None
    whole, as_it_is = follow(tmp_path / "whole", None)
    assert result.metrics == whole.metrics
    (loaded,) = [event.data for event in read_journal(run) if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded["exact"] and 0 < loaded["step"] <= 4, "Ray takes up what was reported with some delay"
    assert committed(run) == committed(as_it_is)
    with result.checkpoint.as_directory() as one, whole.checkpoint.as_directory() as other:
        ours, theirs = (torch.load(Path(each, "growth.pt")) for each in (one, other))
    for name, tensor in theirs["tensors"].items():
        if "chance/" not in name:  # of the process, which nobody has seeded
            assert torch.equal(ours["tensors"][name], tensor), name
    assert (run / "model" / "model.safetensors").read_bytes() == (as_it_is / "model" / "model.safetensors").read_bytes()
