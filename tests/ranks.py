"""Processes that train together, over gloo: forks of a test, joined in a process group."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from forking import fork

PATIENCE = 900.0
"""Seconds after which ranks that have not ended are ended, and the test fails."""


def on_ranks(
    n: int,
    where: Path,
    work: Callable[[int], Any],
    *,
    timeout: float = 300.0,
    joined: bool = True,
    enter: Callable[[int], None] = lambda rank: None,
) -> list[Any]:
    """What ``work(rank)`` gives on each of ``n`` ranks, or the exception that it raised (in words, where it is no
    ``Exception``); ``None`` of one that died.

    ``where`` is a fresh folder, ``timeout`` how many seconds a rank waits for another. Ranks that are not ``joined``
    have the environment that ``torchrun`` gives them. ``enter(rank)`` is called first of all.
    """
    importlib.import_module("torch._dynamo")  # which an optimizer imports: once here, and not once in every rank
    where.mkdir(parents=True, exist_ok=True)
    children = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(n):
        child = fork()
        if child == 0:
            enter(rank)
            _rank(rank, n, where, work, timeout if joined else None, port)
        children.append(child)
    _wait(children)
    return [_read(where / f"{rank}.pickle") for rank in range(n)]


def _rank(rank: int, n: int, where: Path, work: Callable[[int], Any], timeout: float | None, port: int) -> None:
    import torch.distributed as dist

    status = 1
    try:
        if timeout is None:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in told.items()} | {"TORCHELASTIC_RUN_ID": "test"})
        else:
            store = f"file://{where / 'store'}"
            dist.init_process_group("gloo", store, timedelta(seconds=timeout), world_size=n, rank=rank)
        try:
            found = work(rank)
        except BaseException as error:
            (where / f"{rank}.traceback").write_text(traceback.format_exc())
            found = error if isinstance(error, Exception) else f"{type(error).__name__}: {error}"
        (where / f"{rank}.part").write_bytes(pickle.dumps(found))
        (where / f"{rank}.part").rename(where / f"{rank}.pickle")
        status = 0
        with suppress(Exception):  # of a group that has lost a member
            dist.destroy_process_group()
    finally:
        os._exit(status)


def _wait(children: list[int]) -> None:
    left, begun = set(children), time.monotonic()
    while left:
        for child in list(left):
            if os.waitpid(child, os.WNOHANG)[0]:
                left.discard(child)
        if time.monotonic() - begun > PATIENCE:
            for child in left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise AssertionError(f"{len(left)} of {len(children)} ranks had not ended after {PATIENCE:g} seconds")
        time.sleep(0.01)


def _read(path: Path) -> Any:
    return pickle.loads(path.read_bytes()) if path.exists() else None  # noqa: S301
