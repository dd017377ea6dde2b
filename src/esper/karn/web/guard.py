"""Who may talk to the server. Localhost is no boundary: any page in the same browser can send requests to it.

The checks follow the list in MLflow's and Jupyter's security notes: an exact list of hosts and origins (that the two
agree proves nothing, DNS rebinding makes them agree), a token, and headers that take the page's rights away.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from esper.leyline import UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

PROTOCOL: Final = "esper.overwatch.v1"
TOKEN_PREFIX: Final = "esper.token."
"""A browser's WebSocket cannot send headers; it offers the token as a second subprotocol."""

PRIVATE: Final = ("/api", "/ws", "/metrics")
"""Paths that need the token. The page itself holds nothing."""

EDITS: Final = frozenset({"/api/edit", "/api/delete"})
"""Paths that change something, by POST."""
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

CSP: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS: Final = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Access:
    """Hosts, origins and token that are let in."""

    hosts: frozenset[str]
    """Names in lower case, each with a port where that one alone is meant."""
    token: str
    edits: bool = False
    """Whether runs may be named, tagged, described, put away and deleted."""

    def knows(self, host: str) -> bool:
        """Whether a request's ``Host`` is let in. Names of this machine are, by any port: a tunnel has its own, and no
        other site can take such a name for itself.
        """
        name, port = _split(host.lower())
        return name in LOOPBACK or name in self.hosts or f"{name}:{port}" in self.hosts

    def admits(self, origin: str, host: str) -> bool:
        """Whether a page of ``origin`` may ask ``host``: one of its own, or of a name that was given. The page of
        another server of this machine may not.
        """
        scheme, _, place = origin.lower().partition("://")
        mine = place == host.lower() or place in self.hosts or _split(place)[0] in self.hosts
        return scheme in ("http", "https") and mine


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def kept_token(path: Path, anew: bool = False) -> str:
    """The token in ``path``, so that a tab goes on when the server is started again; made where there is none.

    A file that others than its owner may read is replaced. Where nothing can be written, the token is a fresh one.
    """
    if not anew:
        try:
            about, held = path.stat(), path.read_text(encoding="ascii").strip()
            if not about.st_mode & 0o077 and about.st_uid == os.getuid() and len(held) >= SHORTEST:
                return held
        except (OSError, ValueError):
            pass
    token = new_token()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        fresh.replace(path)
    except OSError:
        pass
    return token


SHORTEST: Final = 43
"""Letters of :func:`new_token`."""


def token_from(path: Path, anew: bool = False) -> str:
    """The token in a file that a person named, made there where it is missing. Raises ``UsageError`` where it cannot be
    kept, others may read it, or it can be guessed.
    """
    if path.exists() and not anew:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"--token-file {path}: others may read it; chmod 600 {path}")
        try:
            held = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise UsageError(f"--token-file {path}: it cannot be read as a token") from None
        if not re.fullmatch(f"[A-Za-z0-9_-]{{{SHORTEST},256}}", held):
            raise UsageError(f"--token-file {path}: a token is of {SHORTEST} to 256 letters, digits, - and _")
        return held
    token = kept_token(path, anew=True)
    if not path.is_file() or path.read_text(encoding="ascii") != token:
        raise UsageError(f"--token-file {path}: it cannot be written")
    return token


def access_for(bind: str, allowed_hosts: Iterable[str] = (), token: str | None = None, edits: bool = False) -> Access:
    """Access for a server bound to ``bind``. A name without a port is let in by any.

    Raises ``UsageError`` for an address that other machines can reach, unless the names under which they may are given.
    """
    allowed = [name.strip().lower() for name in allowed_hosts if name.strip()]
    if not is_loopback(bind) and not allowed:
        raise UsageError(
            f"binding to {bind} lets other machines in; name the hosts they may use with --allowed-host, "
            f"or bind to 127.0.0.1"
        )
    return Access(frozenset(allowed), token if token is not None else new_token(), edits)


def is_loopback(bind: str) -> bool:
    """Whether only this machine can reach the address."""
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that lets in only what :class:`Access` allows, and only to read."""

    def __init__(self, app: Asgi, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        socket = scope["type"] == "websocket"
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not self._access.knows(hosts[0]):
            return 403, f"this host name is not served here; {_advice(hosts)}"
        if len(origins) > 1 or (origins and not self._access.admits(origins[0], hosts[0])):
            return (
                403,
                "this origin is not served here; start Overwatch with --allowed-host and its name if that is meant",
            )
        path = scope["path"]
        if not socket and scope["method"] not in ("GET", "HEAD"):
            if path not in EDITS or scope["method"] != "POST":
                return 405, "read-only"
            if not self._access.edits:
                return 405, "read-only; runs are edited where Overwatch was started with --allow-edits"
        if not any(path == private or path.startswith(f"{private}/") for private in PRIVATE):
            return None
        bearer = [value[7:] for value in _values(scope, b"authorization") if value[:7].lower() == "bearer "]
        if socket and not origins and not bearer:
            return 403, "a WebSocket needs an origin or a bearer token"
        offered = bearer if bearer or not socket else _offered_tokens(scope)
        if len(offered) != 1 or not hmac.compare_digest(offered[0].encode(), self._access.token.encode()):
            return 401, "the token is missing or wrong; use the link that Overwatch printed"
        return None


def _advice(hosts: list[str]) -> str:
    """What would let the host in, in printable ASCII: the name comes from anyone."""
    name = hosts[0].rpartition(":")[0] if len(hosts) == 1 and _has_port(hosts[0]) else "".join(hosts[:1])
    plain = "".join(mark if mark.isalnum() and mark.isascii() or mark in ".-[]:" else "?" for mark in name[:80])
    return f"start Overwatch with --allowed-host {plain or 'NAME'} if that is meant"


def _offered_tokens(scope: Scope) -> list[str]:
    return [name[len(TOKEN_PREFIX) :] for name in scope.get("subprotocols", ()) if name.startswith(TOKEN_PREFIX)]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _split(host: str) -> tuple[str, str]:
    """Name and port, which may be empty."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() and not host.endswith("]") else (host, "")


def _has_port(name: str) -> bool:
    return name.rpartition(":")[2].isdigit() and not name.endswith("]")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {key.lower() for key, _ in message.get("headers", ())}
            extra = [(key, value) for key, value in HEADERS if key not in given]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sending


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 4000 + status, "reason": reason})
            return
        kind = "websocket.http.response"
    else:
        kind = "http.response"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": f"{reason}\n".encode()})
