"""The server over a real socket: frames, replay, history, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets")

from websockets.asyncio.client import connect  # noqa: E402

from esper.karn import watch  # noqa: E402
from esper.karn.diff import apply  # noqa: E402
from esper.karn.web.frames import Frame, decode_frame  # noqa: E402
from esper.karn.web.guard import PROTOCOL, TOKEN_PREFIX  # noqa: E402
from esper.karn.web.server import Listening  # noqa: E402
from esper.nissa.journal import JournalWriter  # noqa: E402
from karn.journals import RUN_ID, write_run  # noqa: E402
from karn.streams import START, random_run, story  # noqa: E402
from karn.web import serve  # noqa: E402


def serving(target: Path, cache: Path, **options: Any) -> contextlib.AbstractContextManager[Listening]:
    return serve.serving(target, cache, clock=lambda: START + 60, **options)


@pytest.fixture(scope="module")
def story_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    base = tmp_path_factory.mktemp("server")
    path = write_run(base / "runs", story())
    write_run(base / "runs", random_run(1), run_id="20250101-older")
    with serving(path.parent, base / "cache") as listening:
        yield listening


class Page:
    """A client that does what the page does: keeps the view and applies patches to it."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.view, self.last = socket, None, Frame(0, 0, False, None, None, 0)

    async def next(self) -> Any:
        self.last = decode_frame(await asyncio.wait_for(self.socket.recv(), 10), self.last.board)
        self.view = self.last.content if self.last.whole else apply(self.view, self.last.content)
        return self.view

    async def until(self, condition: Any) -> Any:
        for _ in range(200):
            view = await self.next()
            if condition(view):
                return view
        raise AssertionError(f"never so: {self.view!r:.500}")

    async def ask(self, **request: Any) -> None:
        await self.socket.send(json.dumps(request))


@contextlib.asynccontextmanager
async def page(listening: Listening, query: str = "", **changed: Any) -> AsyncIterator[Page]:
    options = {
        "origin": f"http://127.0.0.1:{listening.port}",
        "subprotocols": [PROTOCOL, TOKEN_PREFIX + listening.access.token],
        "max_size": None,
    } | changed
    async with connect(f"ws://127.0.0.1:{listening.port}/ws{query}", **options) as socket:
        yield Page(socket)


@pytest.mark.anyio
async def test_live_frames(story_server: Listening) -> None:
    async with page(story_server) as viewer:
        view = await viewer.next()
        assert viewer.last.whole and view["mode"]["kind"] == "live"
        assert view["snapshot"]["run"]["text"] == "ended, completed"
        assert viewer.last.board is not None and viewer.last.board.stage.shape == (2, 3)
        await viewer.next()
        assert not viewer.last.whole and viewer.last.rows == 0
        assert viewer.socket.subprotocol == PROTOCOL


@pytest.mark.anyio
async def test_drawer_and_replay(story_server: Listening) -> None:
    async with page(story_server) as viewer:
        await viewer.ask(focus=0)
        view = await viewer.until(lambda view: "detail" in view)
        assert view["detail"]["slots"]["blocks_1"]["seed"]["gates"][0]["gate"] == "G0"
        await viewer.ask(seek=20)
        view = await viewer.until(lambda view: view["mode"]["kind"] == "replay")
        assert view["snapshot"]["clock"]["events"] == 20
        await viewer.ask(step=-3)
        await viewer.until(lambda view: view["snapshot"]["clock"]["events"] == 17)
        await viewer.ask(live=True, focus=-1)
        view = await viewer.until(lambda view: view["mode"]["kind"] == "live")
        assert view["snapshot"]["clock"]["events"] == len(story())
        await viewer.until(lambda view: "detail" not in view)


@pytest.mark.anyio
async def test_two_clients_at_two_times(story_server: Listening) -> None:
    async with page(story_server) as one, page(story_server) as two:
        await one.ask(seek=5)
        await one.until(lambda view: view["snapshot"]["clock"]["events"] == 5)
        assert (await two.next())["snapshot"]["clock"]["events"] == len(story())


@pytest.mark.anyio
@pytest.mark.parametrize("request_", ["{", '{"kill": true}', '{"seek": "x"}', b"\xff\xfe", "null", '{"focus": 99}'])
async def test_garbage_is_answered_plainly(story_server: Listening, request_: str | bytes) -> None:
    async with page(story_server) as viewer:
        await viewer.next()
        await viewer.socket.send(request_)
        view = await viewer.until(lambda view: True)
        if request_ != '{"focus": 99}':
            view = await viewer.until(lambda view: view["mode"].get("note", "").startswith("request not understood"))
        assert view["mode"]["kind"] == "live"


@pytest.mark.anyio
async def test_an_oversized_message_ends_only_its_own_connection(story_server: Listening) -> None:
    async with page(story_server) as healthy, page(story_server) as hostile:
        await hostile.socket.send("x" * (65 * 1024))
        with pytest.raises(websockets.ConnectionClosed):
            for _ in range(100):
                await hostile.next()
        assert hostile.socket.close_code == 1009
        await healthy.next()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": None}, 403),
        ({"subprotocols": [PROTOCOL]}, 401),
        ({"subprotocols": [PROTOCOL, TOKEN_PREFIX + "wrong"]}, 401),
    ],
)
async def test_refused_sockets(story_server: Listening, changed: dict[str, Any], status: int) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with page(story_server, **changed):
            pass
    assert caught.value.response.status_code == status


@pytest.mark.anyio
async def test_a_program_may_use_a_bearer_token_without_an_origin(story_server: Listening) -> None:
    bearer = {"authorization": f"Bearer {story_server.access.token}"}
    async with page(story_server, origin=None, subprotocols=None, additional_headers=bearer) as viewer:
        assert (await viewer.next())["snapshot"]["schema"] == 1


@pytest.mark.anyio
async def test_no_compression_is_agreed(story_server: Listening) -> None:
    async with page(story_server) as viewer:
        assert "sec-websocket-extensions" not in viewer.socket.response.headers


@pytest.mark.anyio
async def test_a_hundred_stalled_readers_do_not_disturb(story_server: Listening) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            stalled = await stack.enter_async_context(page(story_server, max_queue=1, close_timeout=0))
            stack.callback(stalled.socket.transport.abort)
        viewer = await stack.enter_async_context(page(story_server))
        began, taken = asyncio.get_running_loop().time(), _memory()
        for _ in range(10):
            await viewer.next()
        assert asyncio.get_running_loop().time() - began < 8.0
        assert _memory() - taken < 32 << 20, "what they do not take is not kept for them"


def _memory() -> int:
    """Resident bytes of this process, in which the server is; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _get(listening: Listening, path: str, **params: Any) -> Any:
    return httpx.get(
        f"http://127.0.0.1:{listening.port}{path}",
        params=params,
        headers={"authorization": f"Bearer {listening.access.token}"},
        timeout=20,
    )


def test_history(story_server: Listening) -> None:
    assert [run["name"] for run in _get(story_server, "/api/runs").json()["rows"]] == ["20250101-older", RUN_ID]
    found = _get(story_server, "/api/events", filter="type=seed_gate_evaluated gate=G5", limit=1).json()
    assert [event["item"]["epoch"] for event in found["events"]] == [11]
    again = _get(story_server, "/api/events", filter="gate=G5", before=found["events"][0]["at"] - 1).json()
    assert [event["item"]["epoch"] for event in again["events"]] == [9]
    marks = _get(story_server, "/api/timeline").json()["marks"]
    assert [mark["type"] for mark in marks][-1] == "TRAINING_ENDED"
    assert _get(story_server, "/api/snapshot", events=20).json()["clock"]["events"] == 20
    assert _get(story_server, "/api/environment/1").json()["row"]["env"] == 1
    assert _get(story_server, "/api/snapshot", run="20250101-older").json()["run"]["run_id"] == RUN_ID
    assert "Snapshot" in _get(story_server, "/api/schema").json()["$defs"]


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("/api/events", {"filter": "stge=x"}, "did you mean 'stage'"),
        ("/api/environment/7", {}, "unknown environment '7'"),
        ("/api/snapshot", {"run": "nope"}, "unknown run 'nope'"),
        ("/api/snapshot", {"events": "x"}, "events 'x': a whole number"),
        ("/api/environment/" + "9" * 5000, {}, "environment '999"),
        ("/api/events", {"before": "9" * 4999}, "a whole number of at most 18 digits"),
        ("/api/snapshot", {"run": "\x1b[31m\u202e"}, r"unknown run '\x1b[31m\u202e'"),
    ],
)
def test_bad_requests_in_one_line(story_server: Listening, path: str, params: dict[str, str], message: str) -> None:
    response = _get(story_server, path, **params)
    assert response.status_code == 400 and message in response.text and response.text.count("\n") == 1


def test_metrics(story_server: Listening) -> None:
    text = _get(story_server, "/metrics").text
    assert text.endswith("# EOF\n") and "esper_run_ended 1" in text and 'esper_metric{env="0"} 94' in text


@pytest.mark.anyio
async def test_a_run_that_starts_later_and_grows(tmp_path: Path) -> None:
    folder = tmp_path / RUN_ID
    folder.mkdir()
    events = story()
    with serving(folder, tmp_path / "cache") as listening:
        async with page(listening) as viewer:
            assert (await viewer.next())["snapshot"]["run"]["state"] == "waiting"
            with JournalWriter(folder, RUN_ID) as writer:
                for event in events[:30]:
                    writer(event)
                writer.flush()
                await viewer.until(lambda view: view["snapshot"]["clock"]["events"] == 30)
                for event in events[30:]:
                    writer(event)
            view = await viewer.until(lambda view: view["snapshot"]["run"]["state"] == "ended")
            assert view["snapshot"]["clock"]["events"] == len(events)


@pytest.mark.anyio
async def test_the_first_reading_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, go_on = write_run(tmp_path, story(), run_id="long"), threading.Event()

    class Slow(watch.Timeline):
        def __init__(self, directory: Path, *, cache: Path, progress: Callable[[int, int], None]) -> None:
            progress(43, 100)
            go_on.wait(20)
            super().__init__(directory, cache=cache)

    monkeypatch.setattr(watch, "LONG", 0)
    monkeypatch.setattr(watch, "Timeline", Slow)
    told: list[int] = []
    with serving(run, tmp_path / "cache", progress=lambda done, total: told.append(done)) as listening:
        async with page(listening) as viewer:
            await viewer.ask(focus=0)
            view = await viewer.next()
            assert (view["snapshot"]["run"]["state"], view["snapshot"]["clock"]["events"]) == ("reading", 0)
            assert view["snapshot"]["run"]["text"] == "reading the journal, 43 %" and told == [43]
            go_on.set()
            view = await viewer.until(lambda view: view["snapshot"]["run"]["state"] != "reading")
            assert view["snapshot"]["clock"]["events"] == len(story())
            await viewer.until(lambda view: "detail" in view)
            assert viewer.last.board is not None and len(viewer.last.board.ids) == 2
