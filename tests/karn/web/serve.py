"""Overwatch's server in a thread of the test's own process."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
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
        end(server, thread, listening)


def end(server: Any, thread: threading.Thread, listening: Listening) -> None:
    """Stop a server that runs in a thread."""
    server.should_exit = True
    thread.join(60)
    listening.socket.close()
    # what a browser opened while the server was closing may be nobody's to close, and is no leak of a test to come
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        server.server_state.connections.clear()
        gc.collect()
