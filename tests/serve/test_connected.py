"""Work ends when its client leaves, or no longer reads."""

import asyncio

import pytest

from compress.serve.connected import impatient, while_connected


async def never(*_):
    await asyncio.sleep(1000)


async def leaves():
    return {"type": "http.disconnect"}


async def work(receive, send):
    """Whether the work came to its end."""
    async with while_connected(receive) as scope:
        await impatient(send, scope, 0.01)({})
        return True
    return False


async def reads(message):
    await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("receive", "send", "ended"),
    [(never, reads, True), (never, never, False), (leaves, never, False)],
    ids=["reads", "does not read", "leaves"],
)
def test_work_ends_early_only_if_the_client_leaves_or_does_not_read(receive, send, ended):
    assert asyncio.run(asyncio.wait_for(work(receive, send), 5)) is ended
