"""Work for a client that ends as soon as the client has gone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive, Send

SEND_SECONDS = 60.0  # within which a client must read


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[anyio.CancelScope]:
    """A context that is cancelled when the client closes its connection. The request's body must be read before."""
    async with anyio.create_task_group() as tasks:

        async def stop_when_client_leaves() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(stop_when_client_leaves)
        yield tasks.cancel_scope
        tasks.cancel_scope.cancel()


def impatient(send: Send, scope: anyio.CancelScope, seconds: float = SEND_SECONDS) -> Send:
    """A `send` function that cancels `scope` if the client does not read for `seconds`."""

    async def send_in_time(message: Message) -> None:
        with anyio.move_on_after(seconds) as limit:
            await send(message)
        if limit.cancelled_caught:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    return send_in_time
