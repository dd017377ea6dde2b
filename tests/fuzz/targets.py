"""What is fuzzed: a function for each border where something from outside comes in.

Each takes bytes, makes of them what stands at the border (a file with the right checksum, a request), and puts it
through. Nothing may come of it but a result or an ``EsperError`` of one line.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import json
import logging
import lzma
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from esper.leyline import EsperError, visible

ROOT = Path(tempfile.mkdtemp(prefix="esper-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
OLD = Path(__file__).parent.parent / "data" / "v0.1.0"
atexit.register(shutil.rmtree, ROOT, True)
LONGEST = 4000
"""Characters of an error's one line."""


def typed(run: Callable[[], Any]) -> None:
    """``run``, whose errors a person can read."""
    try:
        run()
    except EsperError as error:
        line = visible(error)
        assert line.strip() and len(line) < LONGEST, f"{len(line)} characters: {line[:200]}"


def config(data: bytes) -> None:
    """A configuration file and the settings in it."""
    from esper.run.config import RunConfig, named_code, read_config_file, resolve

    path = ROOT / ("c.toml" if data[:1] == b"t" else "c.json")
    path.write_bytes(data[1:])
    typed(lambda: named_code(resolve(RunConfig, {}, read_config_file(path)).values))


def manifest(data: bytes) -> None:
    """``run.json`` or ``report.json``, in a list of runs, by itself, and beside others."""
    from esper.karn.compare import compare
    from esper.karn.runs import find_runs
    from esper.karn.runtable import run_table, text
    from esper.nissa.rundir import RunDirectory

    run = _story()
    which, data = data[:1], data[1:]
    (run / "report").mkdir(exist_ok=True)
    (run / ("report/report.json" if which == b"p" else "run.json")).write_bytes(data)
    runs = run_table([found.path for found in find_runs(run.parent)], 1.0)
    text(runs, runs.rows)
    if len(data) % 4 == 0:
        compare([run, run])
    typed(lambda: RunDirectory.open(run))


def journal(data: bytes) -> None:
    """Events under checksums that are right, or any bytes behind a header that is."""
    from esper.karn.plain import render
    from esper.karn.runs import describe_run
    from esper.karn.snapshot import build
    from esper.karn.source import Follower
    from esper.nissa.reader import read_journal
    from esper.nissa.segments import Header, commit_line, encode_header

    run = ROOT / "journal"
    run.mkdir(exist_ok=True)
    header, start = encode_header(Header(journal=1, schema=1, run_id="r", segment=1, created=1.0))
    body = data[1:]
    if data[:1] != b"r":
        body = body if body.endswith(b"\n") else body + b"\n"
        body += commit_line(body, start.crc32, body.count(b"\n"), 1, "journal")[0]
    (run / "events-00001.jsonl").write_bytes(header + body)
    follower = Follower(run)
    follower.poll()
    render(build(follower.state, 1.8e9, follower.damage))
    describe_run(run)
    typed(lambda: list(read_journal(run, validate=True)))
    typed(lambda: list(read_journal(run, salvage=True)))


def report(data: bytes) -> None:
    """The report of such events, without figures."""
    from esper.karn.report import encode_report, markdown, read_evidence
    from esper.nissa.segments import Header, commit_line, encode_header

    run = ROOT / "report"
    run.mkdir(exist_ok=True)
    header, start = encode_header(Header(journal=1, schema=1, run_id="r", segment=1, created=1.0))
    body = data if data.endswith(b"\n") else data + b"\n"
    body += commit_line(body, start.crc32, body.count(b"\n"), 1)[0]
    (run / "events-00001.jsonl").write_bytes(header + body)

    def write() -> None:
        evidence, damage = read_evidence(run)
        markdown(evidence, damage, [])
        encode_report(evidence, damage)
        str(evidence.table)

    typed(write)


def checkpoint(data: bytes) -> None:
    """A checkpoint that is sealed, whatever is in it, and the run that would go on from it."""
    from esper.run.config import RunConfig
    from esper.run.resume import ResumeRequest, find

    run, saved, files, body = _cut()
    which, content = data[:1], data[1:]
    files = dict(files)
    manifest = dict(body)
    if which == b"s":
        files["state.json"] = content
    elif which == b"t":
        files["tensors.safetensors"] = content
    elif which == b"x":
        manifest["extra"] = _json(content)
    elif which == b"m":
        found = _json(content)
        manifest = found if isinstance(found, dict) else {"found": found}
    if which != b"m":
        manifest["files"] = {
            name: {"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()} for name, each in files.items()
        }
    for name, each in files.items():
        (saved / name).write_bytes(each)
    sealed = hashlib.sha256(json.dumps(manifest, separators=(",", ":")).encode()).hexdigest()
    whole = content if which == b"r" else json.dumps({**manifest, "sha256": sealed}).encode()
    (saved / "manifest.json").write_bytes(whole)

    def resume() -> None:
        past = find(ResumeRequest(run), "heuristic", RunConfig, {})
        past.require({})

    typed(resume)


def policy(data: bytes) -> None:
    """A learned policy's file: its header, or any bytes."""
    from esper.tamiyo.policies.learned import load_policy

    path = ROOT / "p.safetensors"
    if data[:1] == b"r":
        path.write_bytes(data[1:])
    else:
        about = data[1:].decode("utf-8", "replace")
        path.write_bytes(_with_metadata(_policy(), about))
    typed(lambda: load_policy(path).training_macs)


def table(data: bytes) -> None:
    """A GrowTable under a checksum that is right: its header, its arrays, or any bytes compressed."""
    from esper.bench.growtable.table import load_table

    which, content = data[:1], data[1:]
    raw = _with_metadata(_table(), content.decode("utf-8", "replace")) if which == b"h" else content
    body = content if which == b"r" else lzma.compress(raw, preset=0)
    path = ROOT / "t.growtable"
    path.write_bytes(f"esper-growtable 1 {hashlib.sha256(body).hexdigest()}\n".encode() + body)
    typed(lambda: load_table(path).whole)


def websocket(data: bytes) -> None:
    """Messages of a page, one a line, and the frame that answers them."""
    loop, client = _client()

    async def converse() -> None:
        for message in data.split(b"\n")[:4]:
            await client.handle(message)
        await client.frame(0)

    loop.run_until_complete(converse())


def http(data: bytes) -> None:
    """Bytes on a connection, and what the server answers: never a failure of its own."""
    loop, connect, token, logged = _server()
    logged.clear()
    data = data.replace(b"TOKEN", token)

    async def converse() -> bytes:
        protocol, transport = connect()
        protocol.connection_made(transport)
        for at in range(0, len(data), 512):
            if not transport.is_closing():
                protocol.data_received(data[at : at + 512])
            await asyncio.sleep(0)
        if not transport.is_closing() and protocol.tasks:
            await asyncio.wait(set(protocol.tasks), timeout=5)
        protocol.connection_lost(None)
        if protocol.tasks:
            _, late = await asyncio.wait(set(protocol.tasks), timeout=5)
            assert not late, "a task goes on after its connection is lost"
        return bytes(transport.written)

    answer = loop.run_until_complete(converse())
    assert b"HTTP/1.1 500" not in answer, answer[:200]
    assert not logged, logged


def filtering(data: bytes) -> None:
    """A filter, and what it leaves of a snapshot."""
    from esper.karn.filter import parse
    from esper.karn.plain import render

    typed(lambda: render(_snapshot(), parse(data.decode("utf-8", "replace"))))


def sql(data: bytes) -> None:
    """A question in SQL, answered in every form."""
    store = _store()
    text = data.decode("utf-8", "replace")
    lowered = text.lower()
    if any(word in lowered for word in ("range", "repeat", "series", "pad(", "recursive", "bar(", "cross", "%")):
        return  # what a person asks for may take as long as it takes

    def ask() -> None:
        timer = threading.Timer(5, store._connection.interrupt)
        timer.start()
        try:
            answer = store.query(text)
        finally:
            timer.cancel()
        answer.text(), answer.csv(), answer.csv(exact=False), answer.json()

    typed(ask)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


def _with_metadata(content: bytes, about: str) -> bytes:
    """A safetensors file with other metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    written = json.dumps({**header, "__metadata__": {"esper": about}}).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


@cache
def _story() -> Path:
    from karn.journals import write_run
    from karn.streams import story

    return write_run(ROOT / "story", list(story())[:6])


@cache
def _snapshot() -> Any:
    from esper.karn.snapshot import build
    from esper.karn.source import Follower
    from karn.journals import write_run
    from karn.streams import story

    follower = Follower(write_run(ROOT / "filter", story()))
    follower.poll()
    return build(follower.state, 1.8e9, [])


@cache
def _cut() -> tuple[Path, Path, dict[str, bytes], dict[str, Any]]:
    run = ROOT / "cut"
    shutil.copytree(OLD / "heuristic", run)
    saved, *others = sorted((run / "checkpoints").iterdir())
    for other in others:
        shutil.rmtree(other)
    files = {name: (saved / name).read_bytes() for name in ("state.json", "tensors.safetensors")}
    body = json.loads((saved / "manifest.json").read_text())
    del body["sha256"]
    return run, saved, files, body


@cache
def _policy() -> bytes:
    from esper.simic.vectorized import fresh_network
    from esper.tamiyo.policies.learned import save_policy

    path = ROOT / "whole.safetensors"
    save_policy(path, fresh_network(0, names=("norm",), cells=2, token=2, features=2, embedding=1), {"task": "digits"})
    return path.read_bytes()


@cache
def _table() -> bytes:
    from made_up_tables import made_up_host

    from esper.bench.growtable.table import Table, save_table

    path = ROOT / "whole.growtable"
    save_table(Table([made_up_host(0)], {}), path)
    return lzma.decompress(path.read_bytes().partition(b"\n")[2])


@cache
def _client() -> tuple[asyncio.AbstractEventLoop, Any]:
    from esper.karn.web.feed import Client, RunFeed
    from karn.journals import write_run
    from karn.streams import story

    loop = asyncio.new_event_loop()

    async def make() -> Any:
        client = Client(RunFeed(write_run(ROOT / "feed", story()), cache=ROOT / "cache"))
        await client.feed.refresh()
        return client

    return loop, loop.run_until_complete(make())


@cache
def _server() -> tuple[asyncio.AbstractEventLoop, Callable[[], tuple[Any, Any]], bytes, list[str]]:
    from uvicorn.server import ServerState

    from esper.karn.web.server import Door, listen, make_server
    from karn.journals import write_run
    from karn.streams import story

    listening = listen(Door(port=0))
    server = make_server(write_run(ROOT / "served", story()).parent, listening, cache=ROOT / "cache")
    server.config.load()
    loop = asyncio.new_event_loop()
    kind = server.config.http_protocol_class

    def connect() -> tuple[Any, Any]:
        protocol = kind(config=server.config, server_state=ServerState(), app_state={}, _loop=loop)
        return protocol, Transport(protocol, listening.port)

    logged: list[str] = []
    told = logging.Handler(logging.ERROR)
    told.emit = lambda record: logged.append(str(record.exc_info or record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger("uvicorn.error").addHandler(told)
    host = f"127.0.0.1:{listening.port}"
    return loop, connect, f"{listening.access.token}\r\nHost: {host}".encode(), logged


class Transport(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self, protocol: Any, port: int) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", port)})
        self.protocol, self.written, self.closing = protocol, bytearray(), False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += data

    def writelines(self, lines: Any) -> None:
        self.written += b"".join(lines)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


@cache
def _store() -> Any:
    from esper.karn.store import SqlStore
    from karn.journals import write_run
    from karn.streams import story

    return SqlStore([write_run(ROOT / "asked", story())])


@dataclass(frozen=True)
class Target:
    """A function to fuzz, inputs to start from, and how many of the million are its."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    share: int
