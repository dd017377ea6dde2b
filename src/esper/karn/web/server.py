"""Overwatch's server: Starlette routes over watched runs, read-only, guarded, on the loopback interface.

``WS /ws`` sends binary frames (:mod:`esper.karn.web.frames`); everything else is ``GET``, but for edits, which are
``POST`` and off unless asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.karn.advice import about
from esper.karn.compare import compare
from esper.karn.curves import overlaid, run_curves
from esper.karn.detail import build_detail
from esper.karn.filter import parse
from esper.karn.notes import Edit, delete, edit
from esper.karn.replay import ReadProgress, Timeline
from esper.karn.runtable import run_about, run_table
from esper.karn.snapshot import build, feed_item
from esper.leyline import DataError, EsperError, MissingExtraError, UsageError, decode_json, unknown
from esper.leyline.decoding import told
from esper.leyline.text import visible, visible_json
from esper.nissa.rundir import list_runs

try:
    import anyio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError:
    raise MissingExtraError("Overwatch in the browser", "web") from None

from esper.karn.web.connections import BACKLOG, MOST_WAITING, WaitingRoom, protocol
from esper.karn.web.feed import Client, RunFeed
from esper.karn.web.guard import PROTOCOL, Access, Asgi, Guard, access_for
from esper.karn.web.metrics import CONTENT_TYPE, openmetrics
from esper.karn.web.prefix import Prefix, checked
from esper.karn.web.types import page_schema

STATIC: Final = Path(__file__).parent / "static"
"""The built page; wheels carry it."""
NOT_BUILT: Final = (
    "The page is not built. In a checkout, 'esper overwatch --build' builds it with npm (Node 20 or newer); "
    "'--tui' and '--once' need neither.\n"
)
MAX_MESSAGE: Final = 64 * 1024
MAX_EDIT: Final = 2 << 20
"""Bytes of a change: all that notes may be, however they are escaped."""
MAX_CLIENTS: Final = 256
MAX_EVENTS: Final = 1000
MAX_COMPARED: Final = 16
SEND_TIMEOUT: Final = 30.0
"""Seconds after which a client that takes nothing is let go."""
DEFAULT_PORT: Final = 8471


@dataclass(slots=True)
class Deck:
    """The runs that one server shows: a run directory, or a folder of runs."""

    target: Path
    clock: Callable[[], float] = time.time
    cache: Path | None = None
    progress: ReadProgress | None = None
    """Told about the first reading of a long journal."""
    edits: bool = False
    feeds: dict[Path, RunFeed] = field(default_factory=dict)
    clients: int = 0

    def paths(self) -> list[Path]:
        """Run directories, the newest last."""
        return list_runs(self.target) or [self.target]

    def named(self, name: str) -> Path:
        """Directory of the run called ``name``. Raises ``UsageError``."""
        paths = {path.name: path for path in self.paths()}
        if name not in paths:
            raise unknown("run", name, paths)
        return paths[name]

    def feed(self, name: str | None) -> RunFeed:
        """Feed of the run called ``name``, of the newest one by default. Raises ``UsageError``."""
        path = self.named(name) if name is not None else self.paths()[-1]
        if path not in self.feeds:
            self.feeds[path] = RunFeed(path, self.clock, self.cache, self.progress)
        return self.feeds[path]


def make_app(
    target: str | Path, access: Access, *, static: Path | None = None, base_path: str = "", **deck: Any
) -> Asgi:
    """The guarded application over ``target``, a run directory or a folder of runs, below ``base_path``."""
    hangar = Deck(Path(target), edits=access.edits, **deck)
    page = STATIC if static is None else static
    routes: list[Any] = [
        Route("/api/runs", _answer(hangar, _runs)),
        Route("/api/run", _answer(hangar, _run)),
        Route("/api/snapshot", _answer(hangar, _snapshot)),
        Route("/api/environment/{env}", _answer(hangar, _environment)),
        Route("/api/timeline", _answer(hangar, _timeline)),
        Route("/api/events", _answer(hangar, _events)),
        Route("/api/curves", _answer(hangar, _curves)),
        Route("/api/compare", _answer(hangar, _compare)),
        Route("/api/schema", _answer(hangar, _schema)),
        Route("/api/edit", _answer(hangar, _edit), methods=["POST"]),
        Route("/api/delete", _answer(hangar, _delete), methods=["POST"]),
        Route("/metrics", _answer(hangar, _metrics)),
        WebSocketRoute("/ws", _socket(hangar)),
    ]
    if (page / "index.html").is_file():
        routes.append(Mount("/", StaticFiles(directory=page, html=True)))
    else:
        routes.append(Route("/", lambda request: PlainTextResponse(NOT_BUILT, 503)))
    guarded = Guard(Starlette(routes=routes), access)
    return Prefix(guarded, base_path) if base_path else guarded


Handler = Callable[[Deck, HttpRequest], Awaitable[Response]]


def _answer(deck: Deck, handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
    """A route whose errors that a person caused become one line."""

    async def endpoint(request: HttpRequest) -> Response:
        try:
            return await handler(deck, request)
        except DataError as problem:
            return PlainTextResponse(f"{visible(problem)}\n", 404)
        except (EsperError, ValueError) as problem:
            return PlainTextResponse(f"{visible(problem)}\n", 400)

    return endpoint


def _json(content: Any) -> Response:
    return Response(visible_json(msgspec.json.encode(content, order="deterministic")), media_type="application/json")


def _whole(text: str, name: str) -> int:
    """A number in a request. Raises ``UsageError`` for what is none, or longer than any there is."""
    if re.fullmatch("-?[0-9]{1,18}", text) is None:
        raise UsageError(f"{name} {told(repr(text))}: a whole number of at most 18 digits is needed")
    return int(text)


async def _runs(deck: Deck, request: HttpRequest) -> Response:
    """All runs, and the settings in which they differ."""
    return _json(await anyio.to_thread.run_sync(lambda: run_table(deck.paths(), deck.clock(), deck.edits)))


async def _run(deck: Deck, request: HttpRequest) -> Response:
    """What the manifest says of one run."""
    directory = deck.feed(request.query_params.get("run")).directory
    return _json(await anyio.to_thread.run_sync(run_about, directory))


async def _edit(deck: Deck, request: HttpRequest) -> Response:
    """Change what a person says of one run; the answer is what the run is now."""
    change = decode_json(await _body(request), "edit", Edit)
    directory = deck.named(request.query_params.get("run", ""))

    def made() -> Any:
        edit(directory, change)
        return run_about(directory)

    return _json(await anyio.to_thread.run_sync(made))


async def _delete(deck: Deck, request: HttpRequest) -> Response:
    """Delete one run, whose name is said twice: in the address and in the body."""
    directory = deck.named(request.query_params.get("run", ""))
    if decode_json(await _body(request), "deletion") != {"delete": directory.name}:
        raise UsageError("a deletion says the name of the run once more")
    await anyio.to_thread.run_sync(delete, directory)
    deck.feeds.pop(directory, None)
    return _json({"deleted": directory.name})


async def _body(request: HttpRequest) -> bytes:
    """JSON of a request, of limited length. Raises ``UsageError``."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UsageError("a body of application/json is needed")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_EDIT:
            raise UsageError(f"an edit of more than {MAX_EDIT} bytes")
    return body


async def _snapshot(deck: Deck, request: HttpRequest) -> Response:
    feed = deck.feed(request.query_params.get("run"))
    if "events" not in request.query_params:
        return _json(await feed.whole())
    events = _whole(request.query_params["events"], "events")
    timeline = await _open_timeline(deck, request)

    def then() -> Any:
        state = timeline.at(events)
        return build(state, state.last_time or 0.0, timeline.damage, known=about(feed.directory))

    return _json(await anyio.to_thread.run_sync(then))


async def _environment(deck: Deck, request: HttpRequest) -> Response:
    feed, env = deck.feed(request.query_params.get("run")), _whole(request.path_params["env"], "environment")
    if "events" not in request.query_params:
        return _json(await feed.detail(env))
    events = _whole(request.query_params["events"], "events")
    timeline = await _open_timeline(deck, request)

    def then() -> Any:
        state = timeline.at(events)
        return build_detail(state, env, state.last_time or 0.0)

    return _json(await anyio.to_thread.run_sync(then))


async def _timeline(deck: Deck, request: HttpRequest) -> Response:
    timeline = await _open_timeline(deck, request)
    return _json(
        {
            "events": timeline.events,
            **{name: value for name in ("start_time", "end_time") if (value := getattr(timeline, name)) is not None},
            "marks": [
                {name: value for name in mark.__struct_fields__ if (value := getattr(mark, name)) is not None}
                for mark in timeline.marks
            ],
            "marks_seen": timeline.marks_seen,
        }
    )


async def _events(deck: Deck, request: HttpRequest) -> Response:
    wanted = parse(request.query_params.get("filter", ""))
    limit = max(1, min(_whole(request.query_params.get("limit", "200"), "limit"), MAX_EVENTS))
    timeline = await _open_timeline(deck, request)
    before = min(_whole(request.query_params.get("before", str(timeline.events)), "before"), timeline.events)

    def search() -> list[dict[str, Any]]:
        found = timeline.history(lambda event: wanted.item(feed_item(event)), before, limit)
        return [{"at": at, "item": feed_item(event)} for at, event in found]

    return _json({"events": await anyio.to_thread.run_sync(search), "of": timeline.events, "before": before})


async def _compare(deck: Deck, request: HttpRequest) -> Response:
    """The newest runs, or those named in ``runs`` with commas."""
    paths = deck.paths()
    chosen = _chosen(deck, request) or paths[-MAX_COMPARED:]
    return _json(await anyio.to_thread.run_sync(lambda: compare(chosen, len(paths))))


def _chosen(deck: Deck, request: HttpRequest) -> list[Path]:
    """The runs named in ``runs`` with commas."""
    paths = {path.name: path for path in deck.paths()}
    names = [name for name in request.query_params.get("runs", "").split(",") if name]
    if strange := [name for name in names if name not in paths]:
        raise unknown("run", strange[0], paths)
    return [paths[name] for name in names]


async def _curves(deck: Deck, request: HttpRequest) -> Response:
    """Charts of one episode of a run, of the newest by default; or of the runs named in ``runs`` with commas.

    ``titles``, with commas, asks for some of a run's charts alone.
    """
    if runs := _chosen(deck, request):
        return _json(await anyio.to_thread.run_sync(overlaid, runs))
    directory = deck.feed(request.query_params.get("run")).directory
    episode = _whole(request.query_params["episode"], "episode") if "episode" in request.query_params else None
    titles = [title for title in request.query_params.get("titles", "").split(",") if title]
    return _json(await anyio.to_thread.run_sync(run_curves, directory, episode, titles))


async def _open_timeline(deck: Deck, request: HttpRequest) -> Timeline:
    feed = deck.feed(request.query_params.get("run"))
    return await anyio.to_thread.run_sync(lambda: Timeline(feed.directory, cache=deck.cache, progress=deck.progress))


async def _schema(deck: Deck, request: HttpRequest) -> Response:
    return _json(page_schema())


async def _metrics(deck: Deck, request: HttpRequest) -> Response:
    feed = deck.feed(request.query_params.get("run"))
    return Response(openmetrics(await feed.whole()), media_type=CONTENT_TYPE)


def _socket(deck: Deck) -> Callable[[WebSocket], Awaitable[None]]:
    async def endpoint(websocket: WebSocket) -> None:
        if deck.clients >= MAX_CLIENTS:
            await websocket.close(4503, "too many clients")
            return
        try:
            feed = deck.feed(websocket.query_params.get("run"))
        except UsageError as problem:
            await websocket.close(4404, str(problem)[:120])
            return
        offered = websocket.scope.get("subprotocols", ())
        await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        deck.clients += 1
        try:
            async with feed:
                await _converse(websocket, Client(feed))
        finally:
            deck.clients -= 1

    return endpoint


async def _converse(websocket: WebSocket, client: Client) -> None:
    """Send and listen until either side stops."""
    tasks = [asyncio.create_task(_send(websocket, client)), asyncio.create_task(_listen(websocket, client))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError, OSError):
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await websocket.close()


async def _send(websocket: WebSocket, client: Client) -> None:
    seen = 0
    while True:
        newest = await client.feed.newer(seen)
        skipped, seen = (newest - seen - 1 if seen else 0), newest
        data = await client.frame(skipped)
        async with asyncio.timeout(SEND_TIMEOUT):
            await websocket.send_bytes(data)


async def _listen(websocket: WebSocket, client: Client) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        await client.handle(message.get("text") or message.get("bytes") or b"")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server will listen, and the link to give to a person."""

    socket: socket.socket
    access: Access
    bind: str
    port: int
    base_path: str = ""

    @property
    def link(self) -> str:
        """The token is in the fragment, which browsers do not send and logs do not see."""
        host = "127.0.0.1" if self.bind in ("127.0.0.1", "0.0.0.0", "localhost") else self.bind
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}{self.base_path}/#token={self.access.token}"


@dataclass(frozen=True, slots=True)
class Door:
    """Where a server is to listen, and who may come in. Without a ``port`` it is the usual one, or any free one where
    that is taken; without a ``token`` a new one is made. ``base_path`` is empty or as ``/esper``.
    """

    bind: str = "127.0.0.1"
    port: int | None = None
    allowed_hosts: Sequence[str] = ()
    token: str | None = None
    base_path: str = ""
    edits: bool = False

    def access(self) -> Access:
        """Who is let in. Raises ``UsageError`` for an address that others can reach without ``allowed_hosts``."""
        return access_for(self.bind, self.allowed_hosts, self.token, self.edits)


def listen(door: Door | None = None) -> Listening:
    """Take the port, so that the link can be printed before anything else.

    Raises ``UsageError`` for a port that is taken, and for an address that other machines can reach without
    ``allowed_hosts``.
    """
    door = door or Door()
    access, base = door.access(), checked(door.base_path)
    taken: Iterable[int] = (DEFAULT_PORT, 0) if door.port is None else (door.port,)
    for candidate in taken:
        family = socket.AF_INET6 if ":" in door.bind else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((door.bind.strip("[]"), candidate))
            listener.listen(128)
        except (OSError, OverflowError) as problem:
            listener.close()
            reason = getattr(problem, "strerror", None) or problem
            failed = UsageError(f"cannot listen on {door.bind} port {candidate}: {reason}; choose another with --port")
            continue
        return Listening(listener, access, door.bind, listener.getsockname()[1], base)
    raise failed


def make_server(target: str | Path, listening: Listening, **options: Any) -> uvicorn.Server:
    """A server over ``target``; ``run(sockets=[listening.socket])`` starts it."""
    config = uvicorn.Config(
        make_app(target, listening.access, base_path=listening.base_path, **options),
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        h11_max_incomplete_event_size=16 * 1024,
        http=protocol(WaitingRoom()),
        backlog=BACKLOG,
        limit_concurrency=MOST_WAITING + 2 * MAX_CLIENTS,
        server_header=False,
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn.error").addFilter(_told)
    return uvicorn.Server(config)


def _told(record: logging.LogRecord) -> bool:
    """uvicorn takes a handshake that was refused with a body for one that was not answered: a tab with another
    server's token would fill the terminal with that."""
    return "without completing handshake" not in record.getMessage()
