"""One chat request: wait for a slot, ask the engine, pass its bytes on. It ends as soon as the client has gone.

Closing a page, or its stop button, closes the client's connection. The task is then cancelled wherever it is, in the
queue or in the middle of an answer, and that closes the connection to the engine, which stops generating. A client that
does not read for a minute counts as gone.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
from starlette.types import Receive, Scope, Send

from compress.serve.connected import impatient, while_connected
from compress.serve.errors import RefusedError
from compress.serve.security import send_error

STREAM = "text/event-stream"


class Relay:
    """An ASGI response: the engine's answer, as it arrives.

    `open` is a context of the whole request, from the queue to the last byte. `cause` returns, in one line, the reason
    why the engine ended in the middle of an answer.
    """

    def __init__(
        self, open: Callable[[], AbstractAsyncContextManager[httpx2.Response]], cause: Callable[[], str]
    ) -> None:
        self.open, self.cause = open, cause

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with while_connected(receive) as scope_of_work:
            await self.answer(impatient(send, scope_of_work))

    async def answer(self, send: Send) -> None:
        """Send the answer, or an error if there is no answer."""
        try:
            async with self.open() as response:
                if response.headers.get("content-type", "").startswith(STREAM):
                    await self.send_stream(response, send)
                else:
                    await self.send_whole(response, send)
        except RefusedError as error:
            await send_error(error, send)

    async def send_whole(self, response: httpx2.Response, send: Send) -> None:
        """Read the whole answer, then send it. Raises RefusedError if the engine breaks off."""
        try:
            body = await response.aread()
        except httpx2.HTTPError as error:
            raise self.broken(error) from None
        await send(start("application/json"))
        await send({"type": "http.response.body", "body": body})

    async def send_stream(self, response: httpx2.Response, send: Send) -> None:
        """Send each piece as it comes. If the engine breaks off, the stream ends with an event that holds the error."""
        await send(start(STREAM))
        pieces = response.aiter_raw()
        while True:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except httpx2.HTTPError as error:
                event = b"\n\ndata: " + self.broken(error).body + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": True})
                break
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def broken(self, error: Exception) -> RefusedError:
        return RefusedError(502, f"the engine broke off: {self.cause() or type(error).__name__}")


def start(kind: str) -> dict[str, object]:
    """The first message of an answer. The last header keeps nginx from collecting a stream."""
    headers = [(b"content-type", kind.encode()), (b"x-accel-buffering", b"no")]
    return {"type": "http.response.start", "status": 200, "headers": headers}
