"""Workers that are Ray actors, on this machine or on a cluster. Placing and networking are Ray's."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

from esper.leyline import MissingExtraError, UsageError
from esper.simic.workers import EnvFactory, EnvShard, WorkerAnswer, WorkerLost, WorkerRequest, portable

try:
    import ray
    from ray.exceptions import RayActorError
except ImportError as error:
    raise MissingExtraError("--workers ray", "ray") from error


class Actor:
    """What runs on Ray's side."""

    def __init__(self, factory: EnvFactory) -> None:
        self._share = EnvShard(factory)

    def answer(self, request: WorkerRequest) -> WorkerAnswer:
        """See :meth:`Share.answer`."""
        return portable(self._share.answer(request))


class RayWorker:
    """A share in an actor with one CPU; see :class:`~esper.simic.workers.Worker`."""

    def __init__(self, factory: EnvFactory) -> None:
        remote: Any = ray.remote(num_cpus=1)(Actor)
        self.actor = remote.remote(factory)
        self.where = f"Ray actor {self.actor._actor_id.hex()}"
        self._pending: Any = None

    def ask(self, request: WorkerRequest) -> None:
        """Send it."""
        self._pending = self.actor.answer.remote(request)

    def answer(self) -> WorkerAnswer:
        """Raises :class:`WorkerLost` when the actor, or the node that it was on, is gone."""
        try:
            answer: WorkerAnswer = ray.get(self._pending)
        except RayActorError as error:
            raise WorkerLost(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        return answer

    def close(self) -> None:
        """Kill the actor."""
        ray.kill(self.actor)


def connect(address: str, rows: int) -> int:
    """Join the cluster at ``address`` (``ray`` starts one here, or joins that of ``RAY_ADDRESS``), unless this process
    has joined one already. Returns how many actors to hire for ``rows``: one for every CPU, but no more than rows.

    Raises ``UsageError`` where nobody answers.
    """
    # neither a report to Ray's makers nor this process's `uv run` once more in every actor
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        os.environ.setdefault(name, "0")
    if not ray.is_initialized():
        where: dict[str, Any] = {"include_dashboard": False} if address == "ray" else {"address": address}
        if "RAY_ADDRESS" in os.environ and address == "ray":
            where = {"address": os.environ["RAY_ADDRESS"]}
        try:
            with warnings.catch_warnings():
                # the error below says it
                warnings.filterwarnings("ignore", message="Ray Client connection timed out")
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--workers {address}: no Ray cluster can be joined: {error}") from error
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, min(rows, int(resources.get("CPU", 1))))


def hiring(factory: EnvFactory) -> Callable[[], RayWorker]:
    """Hires actors. Raises ``UsageError`` for hosts that do not train on the CPU."""
    if factory.config.device != "cpu":
        raise UsageError(f"Ray actors train hosts on the CPU, and the device is {factory.config.device}; --device cpu")
    return lambda: RayWorker(factory)
