"""A local receiver of webhooks that answers, hangs, redirects, fails or drips, as a test asks."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """``plan``: what each request gets, in order; the last one for all that follow."""

    daemon_threads = True

    def __init__(self, plan: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan = list(plan)
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/SECRET?key=SECRET"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append({"headers": dict(self.headers), "body": json.loads(body)})
        self.server.paths.append(self.path)
        answer = self.server.plan.pop(0) if len(self.server.plan) > 1 else self.server.plan[0]
        if answer == "hang":
            self.server.over.wait(30)
            return
        if answer == "drip":
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
                while not self.server.over.is_set():
                    self.wfile.write(b"x")
                    time.sleep(0.1)
            return
        self.send_response(int(answer.split()[0]))
        if answer.startswith("3"):
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        if " " in answer:
            self.send_header("Retry-After", answer.split()[1])
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def receiving(*plan: str) -> Iterator[Receiver]:
    """A receiver that ends with the block."""
    server = Receiver(plan)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
