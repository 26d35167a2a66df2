"""A client of an OpenAI-compatible server: vLLM on a Unix socket, or any server at a URL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2

from compress.serve.errors import RefusedError

TIMEOUT = httpx2.Timeout(connect=10.0, read=600.0, write=60.0, pool=None)  # a long prompt is silent for minutes
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
ERROR_BYTES = 64_000
REFUSED = {400, 404, 413, 422}  # faults of the request; everything else is a fault of the engine


class Upstream:
    """One server. `model` is the name by which that server knows the model.

    Leaving the context of `chat` closes the connection, and a closed connection makes vLLM abort the request.
    """

    def __init__(self, url: str, model: str, *, socket: str | None = None, key: str | None = None) -> None:
        self.model = model
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {})
        transport = httpx2.AsyncHTTPTransport(uds=socket, limits=LIMITS, trust_env=False)
        self.client = httpx2.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=TIMEOUT, transport=transport
        )

    async def healthy(self) -> bool:
        """Whether the server answers on /health."""
        try:
            return (await self.client.get("/health", timeout=5.0)).status_code == 200
        except httpx2.HTTPError:
            return False

    @asynccontextmanager
    async def chat(self, payload: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """The answer to a chat request, not yet read. Raises RefusedError if the server refuses or does not answer."""
        request = self.client.build_request("POST", "/v1/chat/completions", json=payload | {"model": self.model})
        try:
            response = await self.client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise unreachable(error) from None
        try:
            if response.status_code != 200:
                raise await refusal(response)
            yield response
        finally:
            with anyio.CancelScope(shield=True):  # the request may have been cancelled
                await response.aclose()

    async def close(self) -> None:
        await self.client.aclose()


async def list_models(url: str, key: str | None) -> list[dict[str, Any]]:
    """The models of a server, as in the `data` of /v1/models. Raises RefusedError."""
    upstream = Upstream(url, "", key=key)
    try:
        response = await upstream.client.get("/v1/models", timeout=10.0)
        if response.status_code != 200:
            raise RefusedError(502, f"/v1/models answers with status {response.status_code}")
        return [one for one in response.json()["data"] if isinstance(one.get("id"), str)]
    except (httpx2.HTTPError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RefusedError(502, f"{type(error).__name__}: {error}") from None
    finally:
        await upstream.close()


def unreachable(error: Exception) -> RefusedError:
    return RefusedError(503, f"the engine does not answer ({type(error).__name__}); try again", retry_after=5)


async def refusal(response: httpx2.Response) -> RefusedError:
    """The error for an answer whose status is not 200, with the server's message."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > ERROR_BYTES:
            break
    status = response.status_code
    message = message_of(bytes(body)) or f"status {status}"
    if status == 503:
        return RefusedError(503, f"the engine cannot answer now: {message}; try again later", retry_after=5)
    return RefusedError(400 if status in REFUSED else 502, f"the engine refused the request: {message}")


def message_of(body: bytes) -> str:
    """The message in an error body of OpenAI's API, in at most 500 characters. "" if there is none."""
    try:
        value = httpx2.Response(200, content=body).json()
        error = value.get("error", value)
        return str(error["message"])[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
