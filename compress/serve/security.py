"""Who may use the service: checks of every request before any route, and the headers of every answer.

A page of another site can make a browser send requests to 127.0.0.1. It cannot forge Host, Origin or Sec-Fetch-Site.
A name that an attacker points to 127.0.0.1 (DNS rebinding) is not an allowed Host. No cookie is ever set.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compress.serve.access import Access
from compress.serve.errors import RefusedError
from compress.serve.page_files import FILES

PUBLIC = frozenset({*FILES, "/health"})  # without any data: the page must load before a person can type a token
JSON_BYTES = 8_000_000
UPLOAD, UPLOAD_BYTES = "/api/document", 20_000_000
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
READ_BYTES, READ_SECONDS = 65_536, 1.0  # of the body of a refused request


class Guarded:
    """An ASGI app behind the checks of an `Access`. Nothing of a refused request reaches the app."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            check_request(scope, self.access)
            limit = body_limit(scope["path"], Headers(scope=scope))
        except RefusedError as error:
            await read_rest(receive)
            return await send_error(error, with_headers(send))
        await self.app(scope, limited(receive, limit), with_headers(send))


async def read_rest(receive: Receive) -> None:
    """Read a short body of a refused request: with an unread body, the client may see a reset and not the answer."""
    read = 0
    with anyio.move_on_after(READ_SECONDS):
        while read <= READ_BYTES:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return
            read += len(message.get("body", b""))


def check_request(scope: Scope, access: Access) -> None:
    """Raise RefusedError unless Host, Origin, Sec-Fetch-Site and the token permit the request."""
    headers = Headers(scope=scope)
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not access.allows_host(hosts[0]):
        raise RefusedError(403, f"the host {', '.join(hosts)[:100] or '(none)'} is not allowed; see --allowed-host")
    check_origin(scope, headers, hosts[0])
    if scope["path"] not in PUBLIC and not access.allows_token(headers.get("authorization", "")):
        raise RefusedError(401, "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`")


def check_origin(scope: Scope, headers: Mapping[str, str], host: str) -> None:
    """Raises RefusedError if a page of another origin has caused the request.

    A link from such a page to this one is allowed.
    """
    origin = headers.get("origin")
    if origin is not None and origin_host(origin) != host.lower():
        raise RefusedError(403, "requests from pages of other origins are refused")
    site = headers.get("sec-fetch-site", "none")
    opens_page = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("none", "same-origin") and not (opens_page and scope["path"] in PUBLIC):
        raise RefusedError(403, "requests from pages of other origins are refused")


def origin_host(origin: str) -> str | None:
    """The host and the port of an Origin header, in lower case. None if the header is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def body_limit(path: str, headers: Mapping[str, str]) -> int:
    """The largest body in bytes. Raises RefusedError if Content-Length is above it."""
    limit = UPLOAD_BYTES if path == UPLOAD else JSON_BYTES
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > limit:
        raise too_large(limit)
    return limit


def too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the request is larger than {limit // 1_000_000} MB; send less")


def limited(receive: Receive, limit: int) -> Receive:
    """A `receive` function that raises RefusedError as soon as a body exceeds `limit` bytes."""
    total = 0

    async def receive_limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise too_large(limit)
        return message

    return receive_limited


def with_headers(send: Send) -> Send:
    """A `send` function that adds HEADERS to every answer."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("cache-control", "no-store")
            headers["server"] = "qcompress"
        await send(message)

    return send_with_headers


async def send_error(error: RefusedError, send: Send) -> None:
    """Send an error as a whole answer."""
    headers = {"content-type": "application/json", **error.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": error.body})
