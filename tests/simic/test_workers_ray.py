"""Hosts on Ray actors: a cluster of two nodes on this machine, one actor killed in mid-episode."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny as tiny_task
from histories import assert_same
from test_workers import CONFIG, EPOCHS, crew_of, play, told

from esper.leyline import TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.simic.workers import EnvFactory, WorkerPool

# Ray leaves log files open
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HERE = os.path.dirname(__file__)


@pytest.fixture(scope="module")
def client_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(client_port: int) -> Iterator[None]:
    """A head and a second node with one CPU each; ``RAY_ADDRESS`` says where."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        # actors import the task of these tests from here
        environment.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": client_port}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        environment.setenv("RAY_ADDRESS", nodes.address)
        yield
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_killed_in_mid_episode_changes_nothing() -> None:
    import ray

    from esper.simic import workers_ray

    alone: list[TelemetryEvent] = []
    expected = play(crew_of(1, alone))
    assert workers_ray.connect("ray", envs=5) == 2, "an actor for each CPU, and each node has one"
    assert len(ray.nodes()) == 2
    events: list[TelemetryEvent] = []
    factory = EnvFactory(CONFIG, tiny_task.tiny().data.digest)
    with WorkerPool(workers_ray.hiring(factory), 2, events.append) as pool:
        seen = play(pool, range(3))
        ray.kill(pool.workers[1].actor)  # type: ignore[attr-defined]
        seen += play(pool, range(3, EPOCHS), begin=False)
    assert seen == expected and told(events) == told(alone)
    (replaced,) = [event for event in events if event.event_type is T.WORKER_REPLACED]
    assert replaced.data["epochs_repeated"] == 3 and "ActorDiedError" in replaced.data["reason"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_says_whether_it_was_born() -> None:
    import ray

    from esper.simic import workers_ray

    workers_ray.connect("ray", envs=5)
    factory = EnvFactory(CONFIG, tiny_task.tiny().data.digest)
    actors = [workers_ray.RayWorker(factory) for _ in range(3)]
    for actor in actors[:2]:
        ray.get(actor.actor.__ray_ready__.remote())
        assert actor.condition() == ""
    assert actors[2].condition() == "it may still wait for its place: 0 of the cluster's 2 CPUs are free"
    actors[0].close()
    deadline = time.monotonic() + 60
    while workers_ray._cpus()[0] < 1 and actors[2].condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    # it has a place now, and takes a while to be born
    assert actors[2].condition() in ("", workers_ray.UNBORN)
    ray.get(actors[2].actor.__ray_ready__.remote())
    assert actors[2].condition() == ""
    for actor in actors:
        actor.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_on_a_cluster_equals_one_in_a_single_process(client_port: int, tmp_path: Path) -> None:
    train = (
        "train ppo --task tiny:tiny --rounds 2 --envs 3 --episode-length 4 --checkpoint-every 3 --device cpu".split()
    )
    # names of one length: a run's name stands on its policy's card, and the file's size is in the journal
    for workers, name in (("1", "alone"), (f"ray://127.0.0.1:{client_port}", "apart")):
        where = ["--workers", workers, "--run-dir", str(tmp_path / name)]
        command = [sys.executable, "-m", "esper.scripts.main", *train, *where]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert_same(tmp_path / "apart", tmp_path / "alone")


def test_hosts_on_accelerators_are_not_for_actors() -> None:
    pytest.importorskip("ray")
    from esper.simic import workers_ray

    with pytest.raises(UsageError, match="--device cpu"):
        workers_ray.hiring(EnvFactory(replace(CONFIG, device="cuda:0"), ""))


def test_one_that_cannot_be_born_says_its_own_reason() -> None:
    """What Ray says of three of them; the first line of the last is empty."""
    pytest.importorskip("ray")
    from ray.exceptions import RayActorError, RayError

    from esper.simic.workers_ray import reason_of

    born = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::A.__init__()\x1b[39m (pid=7)\n"
        "  At least one of the input arguments for this task could not be computed:\n"
        "ModuleNotFoundError: No module named 'mine'\n"
    )
    killed = "The actor died unexpectedly.\n\tclass_name: A\nThe actor is dead because it was killed by `ray.kill`.\nOh"
    assert reason_of(RayError(born)) == "RayError: it could not be born: ModuleNotFoundError: No module named 'mine'"
    assert reason_of(RayError(killed)) == "RayError: The actor is dead because it was killed by `ray.kill`."
    assert reason_of(RayError("")) == "RayError" and reason_of(RayActorError()).startswith("RayActorError: ")


@pytest.mark.parametrize(
    ("free", "after", "hired"),
    [([4.0], 4.0, 3), ([2.0], 2.0, 2), ([0.0, 1.0, 2.0], 2.0, 2), ([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2.0, 1)],
)
def test_cpus_that_are_free_are_waited_for(
    free: list[float], after: float, hired: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from esper.simic import workers_ray

    monkeypatch.setattr(workers_ray, "_SETTLING_SECONDS", 0.3)
    left = iter(free)
    monkeypatch.setattr(workers_ray, "_cpus", lambda: (next(left), after))
    assert workers_ray.free_cpus("ray", 3, 30.0, lambda text: None) == hired


def test_a_cluster_without_a_free_cpu_is_told_of_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from esper.simic import workers_ray

    monkeypatch.setattr(workers_ray, "_SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(workers_ray, "_cpus", lambda: (0.0, 0.0))
    said: list[str] = []
    with pytest.raises(UsageError, match=r"--workers ray: the cluster has no free CPU: 0 of 0"):
        workers_ray.free_cpus("ray", 3, 0.05, said.append)
    assert said == ["waiting for a free CPU of the cluster: 0 of 0; at most 0.05 s in all"]


@pytest.fixture(scope="module")
def no_cpu() -> Iterator[dict[str, str]]:
    """The environment of a cluster that has none."""
    pytest.importorskip("ray")
    code = (
        "import ray, time; ray.init('local', num_cpus=0, include_dashboard=False)\n"
        "print(ray.get_runtime_context().gcs_address, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": HERE, "RAY_AUTH_MODE": "disabled"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        yield {**environment, "RAY_ADDRESS": other.stdout.readline().strip()}
        other.kill()


WAITING = [sys.executable, "-m", "esper.scripts.main", *"train ppo --task tiny:tiny --envs 2 --workers ray".split()]


@pytest.mark.slow
def test_a_run_without_a_free_cpu_ends_by_itself(no_cpu: dict[str, str], tmp_path: Path) -> None:
    command = [*WAITING, "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(command, env=no_cpu, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "esper: waiting for a free CPU of the cluster: 0 of 0; at most 25 s in all",
        "esper: --workers ray: the cluster has no free CPU: 0 of 0",
    ]


@pytest.mark.slow
@pytest.mark.signals
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_and_by_a_signal(number: int, status: int, no_cpu: dict[str, str], tmp_path: Path) -> None:
    command = [*WAITING, "--run-dir", str(tmp_path / "run"), "--workers-timeout", "300"]
    with subprocess.Popen(command, env=no_cpu, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None and "waiting for a free CPU" in waiting.stderr.readline()
        time.sleep(0.5)  # in the midst of writing that line it would be written twice
        waiting.send_signal(number)
        assert waiting.wait(60) == status
        assert len(waiting.stderr.read().splitlines()) <= 1


@pytest.mark.slow
def test_without_ray_one_line_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from esper.scripts.main import main\n"
        "sys.exit(main('train ppo --task digits --envs 2 --workers ray --quiet'.split()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "esper: --workers ray needs the extra 'ray': in a checkout of Esper, pip install '.[ray]'\n"
