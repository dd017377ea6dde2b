"""``python -m esper.karn.post``: one POST of a webhook, in a process of its own that can be ended at any moment.

Neither the search for a name nor an answer that comes byte by byte can be stopped from within. Reads
``{"url": ..., "body": ..., "seconds": ...}`` from standard input; prints ``{"status": ..., "later": ...}`` or
``{"problem": ...}``. Redirects are not followed. Nothing that is printed holds the URL.
"""

from __future__ import annotations

import base64
import json
import sys
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the answer would go where nobody was told that it goes."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def post(url: str, body: bytes, seconds: float) -> dict[str, Any]:
    """Status of the answer, and the seconds after which to try again where it says that; or what went wrong."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "esper"}
    user, at, place = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    address = urlunsplit((parts.scheme, place, parts.path or "/", parts.query, ""))
    request = urllib.request.Request(address, body, headers, method="POST")
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=seconds) as answer:
            return {"status": answer.status}
    except HTTPError as answer:
        with answer:
            later = answer.headers.get("Retry-After", "")
            return {"status": answer.code, **({"later": int(later)} if later.isdecimal() and len(later) < 6 else {})}
    except TimeoutError:
        return {"problem": f"no answer within {seconds:g} s"}
    except (URLError, OSError, HTTPException, ValueError) as problem:
        return {"problem": _told(problem)}


def _told(problem: BaseException) -> str:
    """What went wrong, in words that cannot hold the URL."""
    cause = problem.reason if isinstance(problem, URLError) else problem
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, OSError):
        return str(cause.strerror or type(cause).__name__)
    return type(cause).__name__ if isinstance(cause, BaseException) else "it cannot be reached"


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(post(asked["url"], asked["body"].encode(), asked["seconds"])))
