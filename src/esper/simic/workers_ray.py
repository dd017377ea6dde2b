"""Workers that are Ray actors, on this machine or on a cluster. Placing and networking are Ray's."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from esper.leyline import MissingExtraError, UsageError
from esper.nissa.console import warn
from esper.simic.workers import EnvFactory, EnvShard, WorkerAnswer, WorkerLost, WorkerRequest, portable

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtraError("--workers ray", "ray") from error

PLACING_SECONDS: Final = 25.0
"""So long a cluster may take to have a free CPU, where nothing else is asked for."""
UNBORN: Final = "it was not born yet, though there is a place for it: Ray's logs (raylet.out of its session) say why"
_SETTLING_SECONDS: Final = 3.0


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
        self._born: Any = self.actor.__ray_ready__.remote()
        self.where = f"Ray actor {self.actor._actor_id.hex()}"
        self._pending: Any = None
        self._answer: WorkerAnswer | RayError | None = None

    def ask(self, request: WorkerRequest) -> None:
        """Send it."""
        self._answer, self._pending = None, self.actor.answer.remote(request)

    def wait(self, seconds: float) -> bool:
        """Fetch the answer if it comes. What a signal raises in here, Ray would make another error of."""
        if self._answer is None and ray.wait([self._pending], timeout=seconds)[0]:
            try:
                self._answer = ray.get(self._pending)
            except RayError as error:
                self._answer = error
        return self._answer is not None

    def condition(self) -> str:
        """Whether it was born, and may be waiting for a place."""
        if ray.wait([self._born], timeout=0)[0]:
            return ""
        free, total = _cpus()
        if free < 1:
            return f"it may still wait for its place: {free:g} of the cluster's {total:g} CPUs are free"
        return UNBORN

    def answer(self) -> WorkerAnswer:
        """Raises :class:`WorkerLost` when the actor, or the node that it was on, is gone."""
        if isinstance(self._answer, RayError):
            raise WorkerLost(reason_of(self._answer)) from self._answer
        assert self._answer is not None, "wait() was true"
        return self._answer

    def close(self) -> None:
        """Kill the actor."""
        with suppress(RayError, ConnectionError):  # the cluster is gone, and the actor with it
            ray.kill(self.actor)


def reason_of(error: RayError) -> str:
    """Why an actor is gone, in one line of all that Ray says."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "creation task" in lines[0]:
        return f"{type(error).__name__}: it could not be born: {lines[-1]}"
    dead = (line for line in lines if line.startswith("The actor is dead because"))
    return f"{type(error).__name__}: {next(dead, lines[0])}"


def connect(address: str, envs: int, patience: float | None = None, tell: Callable[[str], None] = warn) -> int:
    """Join the cluster at ``address`` (``ray`` starts one here, or joins that of ``RAY_ADDRESS``), unless this process
    has joined one already. Returns how many actors to hire for ``envs``: one for every free CPU, but no more than envs.

    Raises ``UsageError`` where nobody answers, and where no CPU has become free within ``patience`` seconds (default:
    :data:`PLACING_SECONDS`); ``tell`` is told what is waited for.
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
                with _own_sigterm():
                    ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--workers {address}: no Ray cluster can be joined: {error}") from error
    return free_cpus(address, envs, PLACING_SECONDS if patience is None else patience, tell)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray's handler prints a stack of its own, and exits with status 15."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def free_cpus(address: str, envs: int, patience: float, tell: Callable[[str], None]) -> int:
    """See :func:`connect`. CPUs that others are about to give back are waited for, for a moment."""
    began, told = time.monotonic(), False
    while True:
        free, total = _cpus()
        waited = time.monotonic() - began
        if free >= max(1, min(envs, int(total))) or (free >= 1 and waited >= _SETTLING_SECONDS):
            return min(envs, int(free))
        if waited >= patience:
            raise UsageError(f"--workers {address}: the cluster has no free CPU: {free:g} of {total:g}")
        if not told and waited >= _SETTLING_SECONDS:
            told = True
            tell(f"waiting for a free CPU of the cluster: {free:g} of {total:g}; at most {patience:g} s in all")
        time.sleep(min(0.2, patience))


def _cpus() -> tuple[float, float]:
    """Free ones and all."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return free.get("CPU", 0.0), total.get("CPU", 0.0)


def hiring(factory: EnvFactory) -> Callable[[], RayWorker]:
    """Hires actors. Raises ``UsageError`` for hosts that do not train on the CPU."""
    if factory.config.device != "cpu":
        raise UsageError(f"Ray actors train hosts on the CPU, and the device is {factory.config.device}; --device cpu")
    return lambda: RayWorker(factory)
