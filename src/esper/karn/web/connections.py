"""Connections that wait for their client: for so long, and so many of them, and no client at another one's expense.

uvicorn waits for ever for a request that does not come to its end, and its ``limit_concurrency`` counts such
connections with those that are served (Kludex/uvicorn#157): a few hundred of them, without a token, shut everyone out.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE: Final = 10.0
"""Seconds for a request to be sent, or a response to be taken."""
MOST_WAITING: Final = 256
"""Several times what the loop accepts at once (:data:`BACKLOG`): a new connection has its turn to speak."""
BACKLOG: Final = 64


class WaitingRoom:
    """Connections on which it is the client's turn, by client. For one too many, another leaves: the one that has
    waited longest of the client that has most.
    """

    def __init__(self, most: int = MOST_WAITING, patience: float = PATIENCE) -> None:
        self.most, self.patience = most, patience
        self._waiting: dict[str, dict[asyncio.Transport, asyncio.TimerHandle]] = {}
        self._count = 0

    def enter(self, client: str, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """It is the client's turn, if it was not before: then its time runs on."""
        theirs = self._waiting.setdefault(client, {})
        if transport in theirs:
            return
        theirs[transport] = loop.call_later(self.patience, self._let_go, client, transport)
        self._count += 1
        if self._count > self.most:
            greediest = max(self._waiting, key=lambda each: len(self._waiting[each]))
            self._let_go(greediest, next(iter(self._waiting[greediest])))

    def leave(self, client: str, transport: asyncio.Transport) -> None:
        """It is no longer the client's turn."""
        theirs = self._waiting.get(client, {})
        timer = theirs.pop(transport, None)
        if timer is not None:
            timer.cancel()
            self._count -= 1
            if not theirs:
                del self._waiting[client]

    def _let_go(self, client: str, transport: asyncio.Transport) -> None:
        self.leave(client, transport)
        transport.abort()


def protocol(room: WaitingRoom) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, whose connections wait in ``room``."""

    class Patient(H11Protocol):
        """Tells the room whose turn it is."""

        _full = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._tell()

        def connection_lost(self, exc: Exception | None) -> None:
            room.leave(self._who, self.transport)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._tell()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._tell()

        def pause_writing(self) -> None:
            self._full = True
            super().pause_writing()
            self._tell()

        def resume_writing(self) -> None:
            self._full = False
            super().resume_writing()
            self._tell()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None:
                self.cycle.disconnected = True  # a request before it that is still being answered has no say any more
            try:
                super().send_400_response(msg)
            except h11.LocalProtocolError:  # garbage behind a request whose answer has begun
                self.transport.abort()

        def handle_websocket_upgrade(self, event: Any) -> None:
            room.leave(self._who, self.transport)
            super().handle_websocket_upgrade(event)

        @property
        def _who(self) -> str:
            return self.client[0] if self.client else ""

        def _tell(self) -> None:
            if self.transport.get_protocol() is not self or self.transport.is_closing():
                return
            if self._full or self.cycle is None or self.cycle.response_complete:
                room.enter(self._who, self.transport, self.loop)
            else:
                room.leave(self._who, self.transport)

    return Patient
