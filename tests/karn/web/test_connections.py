"""Connections that wait for their client: none waits for ever, and no number of them shuts others out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")

from esper.karn.web.connections import WaitingRoom  # noqa: E402
from esper.karn.web.server import Listening  # noqa: E402
from karn.journals import write_run  # noqa: E402
from karn.streams import story  # noqa: E402
from karn.web.serve import serving  # noqa: E402


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.anyio
async def test_one_that_says_nothing_is_let_go_and_one_that_spoke_is_not() -> None:
    room, loop = WaitingRoom(patience=0.05), asyncio.get_running_loop()
    silent, spoke = Transport(), Transport()
    for each in (silent, spoke):
        room.enter("a", each, loop)
    room.leave("a", spoke)
    await asyncio.sleep(0.03)
    room.enter("a", silent, loop)  # a few more bytes of the same request win no time
    await asyncio.sleep(0.04)
    assert silent.aborted and not spoke.aborted


@pytest.mark.anyio
async def test_the_greediest_client_loses_its_oldest() -> None:
    room, loop = WaitingRoom(most=5), asyncio.get_running_loop()
    patient, greedy = Transport(), [Transport() for _ in range(20)]
    room.enter("b", patient, loop)
    for each in greedy:
        room.enter("a", each, loop)
    assert not patient.aborted
    assert [each.aborted for each in greedy] == [True] * 16 + [False] * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    base = tmp_path_factory.mktemp("server")
    with serving(write_run(base, story()), base / "cache") as listening:
        yield listening


HALVES = [b"", b"GET /api/runs HTTP/1.1\r\n", b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"]


def test_six_hundred_half_open_connections_without_a_token_shut_nobody_out(server: Listening) -> None:
    held: list[socket.socket] = []
    try:
        for number in range(600):
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            held[-1].sendall(HALVES[number % 3])
        assert _get(server).status_code == 200
    finally:
        for each in held:
            each.close()
    assert _get(server).status_code == 200


def test_one_that_takes_no_response_holds_up_nobody(server: Listening) -> None:
    lines = ["GET /api/schema HTTP/1.1", f"Host: 127.0.0.1:{server.port}"]
    lines += [f"Authorization: Bearer {server.access.token}", "", ""]
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall("\r\n".join(lines).encode() * 20)
        assert _get(server).status_code == 200


def _get(server: Listening) -> Any:
    headers = {"authorization": f"Bearer {server.access.token}"}
    return httpx.get(f"http://127.0.0.1:{server.port}/api/runs", headers=headers, timeout=10)
