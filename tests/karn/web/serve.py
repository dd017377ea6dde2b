"""Overwatch's server in a thread of the test's own process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esper.karn.web.server import Door, Listening, listen, make_server


@contextlib.contextmanager
def serving(target: Path, cache: Path, *, door: Door | None = None, **options: Any) -> Iterator[Listening]:
    """A server over ``target``, on a free port unless one is given; it ends with the block."""
    listening = listen(door or Door(port=0))
    server = make_server(target, listening, cache=cache, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening.socket]}, daemon=True)
    thread.start()
    try:
        yield listening
    finally:
        server.should_exit = True
        thread.join(10)
        listening.socket.close()
