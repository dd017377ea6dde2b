"""The page below a path, for a proxy that passes paths on as they are. One that takes the path away works as well."""

from __future__ import annotations

import re

from esper.karn.web.guard import Asgi, Receive, Scope, Send
from esper.leyline import UsageError


def checked(path: str) -> str:
    """``/a/b`` or nothing. Raises ``UsageError`` for what is no path."""
    inner = path.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*|", inner) or {".", ".."} & set(inner.split("/")):
        raise UsageError(f"--base-path {path[:80]!r}: a path such as /esper is needed, of letters, digits and ._~-")
    return f"/{inner}" if inner else ""


class Prefix:
    """ASGI middleware that takes ``base`` off what is asked for."""

    def __init__(self, app: Asgi, base: str) -> None:
        self._app, self._base = app, base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path == self._base:
            await send({"type": "http.response.start", "status": 308, "headers": [(b"location", f"{path}/".encode())]})
            await send({"type": "http.response.body", "body": b""})
            return
        if path.startswith(f"{self._base}/"):
            inside = path[len(self._base) :]
            scope = {**scope, "path": inside, "raw_path": inside.encode()}
        await self._app(scope, receive, send)
