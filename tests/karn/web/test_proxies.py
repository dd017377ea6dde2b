"""The page in a headless Chromium, with something on the way: a tunnel, a proxy, one that buffers, one that cuts."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.karn.web.server import Door
from karn.journals import write_run
from karn.streams import story
from karn.web.browser import Browser, go, in_a_browser, rows, until
from karn.web.serve import serving

pytestmark = in_a_browser()
NOTICES = "[aria-label=Notices]"


class Forwarder:
    """Passes bytes on to ``port`` from a port of its own, as ``ssh -L`` does. ``hold``: seconds for which what the
    server says is kept back, time and again; ``cut()`` ends every connection.
    """

    def __init__(self, port: int) -> None:
        self._to, self.hold = port, 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hold = 0.0
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._open |= {near, far}
                for ends in ((near, far, False), (far, near, True)):
                    self._threads.append(threading.Thread(target=self._pass, args=ends, daemon=True))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, held: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if held and self.hold:
                    end = time.monotonic() + self.hold
                    while self.hold and (left := end - time.monotonic()) > 0:
                        source.settimeout(left)
                        with contextlib.suppress(TimeoutError):
                            if not (more := source.recv(1 << 16)):
                                break
                            data += more
                    source.settimeout(None)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def forwarded(port: int) -> Iterator[Forwarder]:
    found = Forwarder(port)
    try:
        yield found
    finally:
        found.close()


def test_by_any_port_of_a_tunnel_and_back_again_when_it_was_cut(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path, story(), run_id="far")
    with serving(run, tmp_path / "cache") as listening, forwarded(listening.port) as tunnel:
        assert tunnel.port != listening.port
        link = listening.link.replace(f":{listening.port}/", f":{tunnel.port}/").replace("127.0.0.1", "localhost")
        go(browser, link, fresh=True)
        until(lambda: rows(browser))
        before = browser.eval(code="performance.timeOrigin")
        tunnel.cut()
        tunnel.hold = 4.0
        until(
            lambda: "No contact with Overwatch" in (said := browser.text(selector=NOTICES)) and "trying again" in said
        )
        tunnel.hold = 0.0
        until(lambda: "No contact" not in browser.text(selector=NOTICES))
        assert browser.eval(code="performance.timeOrigin") == before, "the same page, not a new one"


def test_a_proxy_that_buffers_is_told_of(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path, story()[:-1], run_id="slow")
    with serving(run, tmp_path / "cache") as listening, forwarded(listening.port) as proxy:
        go(browser, listening.link.replace(f":{listening.port}/", f":{proxy.port}/"), fresh=True)
        until(lambda: rows(browser))
        assert "bursts" not in browser.text(selector=NOTICES)
        proxy.hold = 3.0
        until(lambda: "Frames come in bursts, 3 s apart" in browser.text(selector=NOTICES))
        proxy.hold = 0.0


NGINX = """
daemon off;
pid {base}/pid;
error_log {base}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {base}/body;
  proxy_temp_path {base}/proxy;
  fastcgi_temp_path {base}/fastcgi;
  uwsgi_temp_path {base}/uwsgi;
  scgi_temp_path {base}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location /esper/ {{
      proxy_pass http://127.0.0.1:{to}{strip};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      {upgrade}
    }}
  }}
}}
"""
UPGRADE = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_read_timeout 1d;"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def nginx(base: Path, to: int, *, strip: bool = False, upgrade: str = UPGRADE) -> Iterator[int]:
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.skip("no nginx here (apt-get install nginx-light)")
    port = free_port()
    base.mkdir()
    text = NGINX.format(base=base, port=port, to=to, strip="/" if strip else "", upgrade=upgrade)
    (base / "nginx.conf").write_text(text)
    process = subprocess.Popen([program, "-c", str(base / "nginx.conf"), "-p", str(base)], stderr=subprocess.PIPE)
    try:

        def answers() -> bool:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        until(answers)
        yield port
    finally:
        process.terminate()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("strip", [False, True], ids=["path-passed-on", "path-taken-away"])
def test_behind_nginx(browser: Browser, tmp_path: Path, strip: bool) -> None:
    run, door = write_run(tmp_path, story(), run_id="deep"), Door(port=0, base_path="" if strip else "/esper")
    with serving(run, tmp_path / "cache", door=door) as listening:
        assert strip or "/esper/#token=" in listening.link
        with nginx(tmp_path / "nginx", listening.port, strip=strip) as port:
            go(browser, f"http://localhost:{port}/esper/#token={listening.access.token}", fresh=True)
            until(lambda: rows(browser))
            assert browser.said() == []


def test_behind_nginx_that_passes_no_websocket_on_the_page_says_so(browser: Browser, tmp_path: Path) -> None:
    run, door = write_run(tmp_path, story(), run_id="deep"), Door(port=0, base_path="/esper")
    with serving(run, tmp_path / "cache", door=door) as listening:
        with nginx(tmp_path / "nginx", listening.port, upgrade="") as port:
            browser.open(url=f"http://localhost:{port}/esper/#token={listening.access.token}", fresh=True)
            browser.wait(selector=NOTICES, state="attached")
            until(lambda: "a proxy in between has to pass that on" in browser.text(selector=NOTICES))
