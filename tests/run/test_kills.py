"""kill -9 at random moments of whole runs, in a save and in a resume too: nothing lost, invented or different."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import Killer, Kind, prepare_server

import esper.scripts.heuristic
import esper.scripts.ppo
import esper.scripts.summary
from counting import Count

PPO = "train ppo --task tiny:tiny --rounds 2 --envs 2 --episode-length 5 --checkpoint-every 2 --quiet".split()
KINDS = {
    "heuristic": Kind(
        "train heuristic --task tiny:tiny --episodes 2 --max-epochs 7 --compare random --checkpoint-every 2"
        " --quiet".split()
    ),
    "ppo": Kind(PPO),
    "two workers": Kind([*PPO, "--workers", "2"], forked_workers=True),
}
KILLS = {"heuristic": 400, "ppo": 400, "two workers": 190}
RAY_KILLS = 10
"""Fewer: an actor takes long to be born."""
KEYS = ("kills", "in a save", "in a resume", "torn tails", "lost", "invented", "different")


@pytest.fixture(scope="module")
def imported() -> None:
    """What children find imported."""
    import torch._dynamo  # noqa: F401

    assert esper.scripts.heuristic and esper.scripts.ppo and esper.scripts.summary
    prepare_server()


def count(kind: str, wanted: int, folder: Path) -> Count:
    """Kill until that many kills are counted. A case that finds anything fails the test."""
    counted = Count(f"kills of {kind} runs", wanted, KEYS)
    killer = Killer(KINDS[kind], folder)
    killer.play_whole()
    for number in counted.left():
        began = time.monotonic()
        found = killer.case(number)
        counted.add(time.monotonic() - began, **found, lost=0, invented=0, different=0)
    return counted


@pytest.mark.slow
@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("kind", KINDS)
def test_kills(kind: str, tmp_path: Path) -> None:
    count(kind, KILLS[kind], tmp_path).finish()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two CPUs of Ray, in a process that outlives the runs."""
    code = (
        "import ray, time; ray.init(num_cpus=2, include_dashboard=False)\n"
        "print(ray.get_runtime_context().gcs_address, flush=True); time.sleep(36000)"
    )
    # actors import the task of these runs from there
    paths = [str(Path(__file__).parents[1] / "simic"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for name, value in (("AUTH_MODE", "disabled"), ("USAGE_STATS_ENABLED", "0"), ("ENABLE_UV_RUN_RUNTIME_ENV", "0")):
        monkeypatch.setenv(f"RAY_{name}", value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    pytest.importorskip("ray")  # which reads them
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        monkeypatch.setenv("RAY_ADDRESS", other.stdout.readline().strip())
        yield
        other.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("imported", "cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_kills_of_runs_on_actors(tmp_path: Path) -> None:
    KINDS["ray actor"] = Kind([*PPO, "--workers", "ray", "--device", "cpu"])
    count("ray actor", RAY_KILLS, tmp_path).finish()
