"""A limit on requests: some run, some wait in a queue, and every further request is refused at once."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from compress.serve.errors import RefusedError

LONGEST_WAIT = 60  # seconds; the largest Retry-After
MEMORY = 0.2  # weight of the newest answer in the mean duration


class Gate:
    """Runs up to `running` requests at a time, in the order of arrival. At most `queue` requests wait."""

    def __init__(self, running: int, queue: int) -> None:
        self.limit, self.queue = running, queue
        self.running = self.waiting = 0
        self.mean_seconds = 1.0
        self._free = asyncio.Semaphore(running)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A context in which a request may run. Raises RefusedError 503 if the queue is full."""
        await self._enter()
        self.running += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self.mean_seconds += MEMORY * (time.monotonic() - started - self.mean_seconds)
            self._free.release()

    async def _enter(self) -> None:
        if self._free.locked() and self.waiting >= self.queue:
            message = f"{self.running} requests run and {self.waiting} wait; try again later"
            raise RefusedError(503, message, retry_after=self.retry_after())
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    def retry_after(self) -> int:
        """Seconds until a place in the queue is likely to be free: the mean time between two answers."""
        return min(LONGEST_WAIT, max(1, math.ceil(self.mean_seconds / self.limit)))
