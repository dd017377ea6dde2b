"""The checks on who may talk to the server, each with what it must refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")

from esper.karn.web.guard import CSP, access_for, is_loopback, kept_token, new_token, token_from  # noqa: E402
from esper.karn.web.server import Door, listen, make_app  # noqa: E402
from esper.leyline import UsageError  # noqa: E402
from karn.journals import write_run  # noqa: E402
from karn.streams import story  # noqa: E402

HOST = "127.0.0.1:9000"
TOKEN = "t" * 43


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> httpx.AsyncClient:
    base = tmp_path_factory.mktemp("guard")
    page = base / "static"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>Overwatch</title>")
    run = write_run(base / "runs", story())
    app = make_app(run, access_for("127.0.0.1", token=TOKEN), static=page, cache=base / "cache")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}")


AUTH = {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"host": "localhost:9000"}, 200),
        ("/", {"host": "evil.example"}, 403),
        # a tunnel has a port of its own, and no site can take these names for itself
        ("/", {"host": "127.0.0.1"}, 200),
        ("/", {"host": "localhost:9001"}, 200),
        ("/", {"host": "localhost.evil.example:9000"}, 403),
        ("/api/snapshot", AUTH | {"host": "localhost:9001", "origin": "http://localhost:9001"}, 200),
        # the page of another server of this machine
        ("/api/snapshot", AUTH | {"origin": "http://localhost:3000"}, 403),
        ("/api/snapshot", AUTH | {"origin": "http://127.0.0.1:9001"}, 403),
        ("/", {"host": "127.0.0.1:9000.evil.example"}, 403),
        ("/api/snapshot", AUTH, 200),
        ("/api/snapshot", {}, 401),
        ("/api/snapshot", {"authorization": "Bearer wrong"}, 401),
        ("/api/snapshot?token=" + TOKEN, {}, 401),
        ("/metrics", {}, 401),
        ("/metrics", AUTH, 200),
        ("/api/snapshot", AUTH | {"origin": f"http://{HOST}"}, 200),
        ("/api/snapshot", AUTH | {"origin": "http://evil.example"}, 403),
        # rebinding makes both agree, and still neither is in the list
        ("/api/snapshot", AUTH | {"host": "evil.example:9000", "origin": "http://evil.example:9000"}, 403),
        ("/api/snapshot", AUTH | {"origin": "null"}, 403),
        ("/api/nothing", AUTH, 404),
        ("/..%2f..%2fetc/passwd", {}, 404),
    ],
)
async def test_host_origin_and_token(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    assert (await client.get(path, headers=headers)).status_code == status


@pytest.mark.anyio
async def test_exactly_one_host(client: httpx.AsyncClient) -> None:
    response = await client.get("/", headers=[("host", HOST), ("host", "evil.example")])
    assert response.status_code == 403


@pytest.mark.anyio
async def test_headers_on_answers_and_refusals(client: httpx.AsyncClient) -> None:
    for response in (await client.get("/"), await client.get("/api/snapshot"), await client.get("/x")):
        assert response.headers["content-security-policy"] == CSP
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in response.headers
    assert "unsafe" not in CSP and "default-src 'none'" in CSP and "frame-ancestors 'none'" in CSP


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_read_only(client: httpx.AsyncClient, method: str) -> None:
    assert (await client.request(method, "/api/snapshot", headers=AUTH)).status_code == 405


@pytest.mark.anyio
async def test_run_names_travel_as_data(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    events = story()
    events[0].data["task"] = name
    access, unbuilt = access_for("127.0.0.1", token=TOKEN), tmp_path / "static"
    app = make_app(write_run(tmp_path, events), access, static=unbuilt, cache=tmp_path / "cache")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}") as client:
        response = await client.get("/api/snapshot", headers=AUTH)
        assert response.headers["content-type"] == "application/json"
        assert response.json()["run"]["task"] == name
        missing = await client.get("/")
        assert missing.status_code == 503 and "esper overwatch --build" in missing.text
        assert missing.headers["content-type"].startswith("text/plain")
        refused = await client.get("/api/snapshot", headers=AUTH, params={"run": name})
        assert refused.status_code == 400 and refused.headers["content-type"].startswith("text/plain")


def test_tokens_have_256_bits_and_differ() -> None:
    assert len(new_token()) >= 43 and new_token() != new_token()


def test_the_link_has_the_token_in_its_fragment() -> None:
    listening = listen()
    try:
        before, _, fragment = listening.link.partition("#")
        assert listening.access.token not in before and listening.access.token in fragment
        assert before == f"http://127.0.0.1:{listening.port}/"
    finally:
        listening.socket.close()


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_only_by_name(bind: str) -> None:
    assert not is_loopback(bind)
    with pytest.raises(UsageError, match="--allowed-host"):
        listen(Door(bind))
    hosts = access_for(bind, ["box.example", "other.example:8080"]).hosts
    assert hosts == {"box.example", "other.example:8080"}


def test_a_taken_port_is_said_and_a_default_one_is_stepped_over() -> None:
    first = listen()
    try:
        with pytest.raises(UsageError, match=f"port {first.port}.*--port"):
            listen(Door(port=first.port))
        second = listen()
        assert second.port != first.port
        second.socket.close()
        with pytest.raises(UsageError, match="--port"):
            listen(Door(port=70000))
    finally:
        first.socket.close()


def test_a_kept_token_outlives_the_server_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"
    token = kept_token(path)
    assert kept_token(path) == token and path.stat().st_mode & 0o777 == 0o600
    another = kept_token(path, anew=True)
    assert another != token and kept_token(path) == another
    path.chmod(0o644)
    assert kept_token(path) != another, "what others could read is not trusted"
    path.write_text("short")
    assert len(kept_token(path)) >= 43
    (tmp_path / "file").write_text("")
    assert kept_token(tmp_path / "file" / "token") != kept_token(tmp_path / "file" / "token"), "not kept, yet given"


def test_a_token_file_of_a_person(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"
    token = token_from(path)
    assert token_from(path) == token and path.stat().st_mode & 0o777 == 0o600
    assert token_from(path, anew=True) != token
    mine = "My-own_token" * 4
    path.write_text(f"{mine}\n")
    assert token_from(path) == mine
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        token_from(path)
    assert path.read_text() == f"{mine}\n", "what a person wrote is not replaced"
    path.chmod(0o600)
    for held in ("short", "x" * 42 + " y", "\u00e9" * 50):
        path.write_text(held)
        with pytest.raises(UsageError, match="--token-file"):
            token_from(path)
    with pytest.raises(UsageError, match="cannot be written"):
        token_from(path / "below" / "a" / "file")
