"""Edits by way of the server: who may make them, and what becomes of those that cannot be made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")

from esper.karn.notes import read_notes  # noqa: E402
from esper.karn.web.guard import access_for  # noqa: E402
from esper.karn.web.prefix import checked  # noqa: E402
from esper.karn.web.server import MAX_EDIT, make_app  # noqa: E402
from esper.leyline import UsageError  # noqa: E402
from esper.nissa.journal import JournalWriter  # noqa: E402
from esper.nissa.rundir import RunDirectory, list_runs  # noqa: E402
from karn.journals import write_run  # noqa: E402
from karn.streams import story  # noqa: E402

TOKEN = "t" * 43
AUTH = {"authorization": f"Bearer {TOKEN}"}
JSON = {**AUTH, "content-type": "application/json"}


def client(folder: Path, edits: bool = True, base: str = "") -> httpx.AsyncClient:
    app = make_app(folder, access_for("127.0.0.1", token=TOKEN, edits=edits), cache=folder / "cache", base_path=base)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:9000")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_run(tmp_path, story()[:3], run_id=name)
    return tmp_path


@pytest.mark.anyio
async def test_edits_are_off_unless_asked_for(folder: Path) -> None:
    async with client(folder, edits=False) as asks:
        answer = await asks.post("/api/edit?run=a", json={"name": "x"}, headers=AUTH)
        assert answer.status_code == 405 and "--allow-edits" in answer.text
        assert "edits" not in (await asks.get("/api/runs", headers=AUTH)).json()
        assert (await asks.post("/api/delete?run=a", json={"delete": "a"}, headers=AUTH)).status_code == 405
    assert read_notes(folder / "a").name == "" and len(list_runs(folder)) == 2


@pytest.mark.anyio
async def test_an_edit_and_a_deletion(folder: Path) -> None:
    async with client(folder) as asks:
        assert (await asks.get("/api/runs", headers=AUTH)).json()["edits"] is True
        made = await asks.post("/api/edit?run=a", json={"name": "first", "tags": ["x"], "notes": "<b>\n"}, headers=AUTH)
        assert made.status_code == 200 and made.json()["title"] == "first" and made.json()["notes"] == "<b>\n"
        stale = await asks.post("/api/edit?run=a", json={"name": "other", "before": "0" * 16}, headers=AUTH)
        assert stale.status_code == 400 and "someone else" in stale.text
        once = await asks.post("/api/delete?run=a", json={"delete": "b"}, headers=AUTH)
        assert once.status_code == 400 and "once more" in once.text
        assert (await asks.post("/api/delete?run=a", json={"delete": "a"}, headers=AUTH)).status_code == 200
        assert [row["name"] for row in (await asks.get("/api/runs", headers=AUTH)).json()["rows"]] == ["b"]
        gone = await asks.post("/api/edit?run=a", json={"name": "x"}, headers=AUTH)
        assert gone.status_code == 400 and "unknown run" in gone.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{}", 401),
        (JSON | {"origin": "http://evil.example"}, b"{}", 403),
        (JSON | {"origin": "http://localhost:3000"}, b"{}", 403),
        # what a form of another site can send
        (AUTH | {"content-type": "text/plain"}, b"{}", 400),
        (AUTH | {"content-type": "application/x-www-form-urlencoded"}, b"name=x", 400),
        (JSON, b"{", 404),
        (JSON, b'{"path": "/etc"}', 404),
        (JSON, json.dumps({"name": "x" * 300}).encode(), 400),
        (JSON, b'{"notes": "' + b"x" * MAX_EDIT + b'"}', 400),
    ],
)
async def test_what_is_refused(folder: Path, headers: dict[str, str], body: bytes, status: int) -> None:
    async with client(folder) as asks:
        answer = await asks.post("/api/edit?run=a", content=body, headers=headers)
        assert answer.status_code == status and "\n" not in answer.text.rstrip("\n")
        for name in ("..", "../a", "%2e%2e", ""):
            assert (await asks.post(f"/api/delete?run={name}", json={"delete": ".."}, headers=AUTH)).status_code == 400
    assert read_notes(folder / "a").name == "" and len(list_runs(folder)) == 2


@pytest.mark.anyio
async def test_a_run_that_is_written_is_not_deleted(folder: Path) -> None:
    run = RunDirectory.create(folder, "live", {}).path
    async with client(folder) as asks:
        with JournalWriter(run, "live"):
            answer = await asks.post("/api/delete?run=live", json={"delete": "live"}, headers=AUTH)
        assert answer.status_code == 400 and "being written" in answer.text and run.is_dir()


@pytest.mark.anyio
async def test_two_servers_on_one_folder(folder: Path) -> None:
    """What one changes the other shows; what both change at once is whole."""
    async with client(folder) as one, client(folder) as other:
        for at in range(6):
            asks = (one, other)[at % 2]
            tags = [*read_notes(folder / "a").tags, f"t{at}"]
            assert (await asks.post("/api/edit?run=a", json={"tags": tags}, headers=AUTH)).status_code == 200
            seen = (await (one, other)[1 - at % 2].get("/api/runs", headers=AUTH)).json()["rows"][0]
            assert seen["tags"] == sorted(tags)
        assert (await one.post("/api/delete?run=a", json={"delete": "a"}, headers=AUTH)).status_code == 200
        late = await other.post("/api/edit?run=a", json={"name": "x"}, headers=AUTH)
        assert late.status_code == 400 and sorted(path.name for path in list_runs(folder)) == ["b"]


@pytest.mark.anyio
async def test_below_a_path(folder: Path) -> None:
    async with client(folder, base="/deep/down") as asks:
        assert (await asks.get("/deep/down/api/runs", headers=AUTH)).status_code == 200
        assert (await asks.get("/api/runs", headers=AUTH)).status_code == 200, "a proxy may take the path away"
        assert (await asks.get("/deep/down/api/runs")).status_code == 401
        moved = await asks.get("/deep/down")
        assert moved.status_code == 308 and moved.headers["location"] == "/deep/down/"
        assert (await asks.get("/deeper/api/runs", headers=AUTH)).status_code == 404


@pytest.mark.parametrize(("given", "path"), [("esper", "/esper"), ("/a/b/", "/a/b"), ("", ""), ("/", "")])
def test_a_base_path(given: str, path: str) -> None:
    assert checked(given) == path


@pytest.mark.parametrize("given", ["/a b", "/a?b", "/a//b", "/../x", "/a\r\nSet-Cookie: x", "/<b>"])
def test_what_is_no_base_path(given: str) -> None:
    with pytest.raises(UsageError, match="--base-path"):
        checked(given)
