"""The queue: as many as may run do run, as many as may wait do wait, in their order."""

import asyncio

import pytest

from compress.serve.errors import RefusedError
from compress.serve.gate import Gate


def test_requests_run_in_the_order_of_their_arrival():
    async def main():
        gate, order = Gate(1, 10), []

        async def request(number):
            async with gate.slot():
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.gather(*map(request, range(8)))
        return order, gate.running, gate.waiting

    assert asyncio.run(main()) == (list(range(8)), 0, 0)


def test_at_most_the_limit_runs_at_once():
    async def main():
        gate, most = Gate(3, 100), 0

        async def request():
            nonlocal most
            async with gate.slot():
                most = max(most, gate.running)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(request() for _ in range(20)))
        return most

    assert asyncio.run(main()) == 3


@pytest.mark.parametrize("queue", [0, 2])
def test_one_beyond_the_queue_is_refused_with_retry_after(queue):
    async def main():
        gate, finish = Gate(1, queue), asyncio.Event()

        async def request():
            async with gate.slot():
                await finish.wait()

        tasks = [asyncio.create_task(request()) for _ in range(1 + queue)]
        await asyncio.sleep(0.01)
        with pytest.raises(RefusedError) as refused:
            async with gate.slot():
                pass
        finish.set()
        await asyncio.gather(*tasks)
        async with gate.slot():  # afterwards there is room again
            return refused.value

    error = asyncio.run(main())
    assert error.status == 503 and error.retry_after >= 1


def test_a_request_that_is_cancelled_while_it_waits_leaves_the_queue():
    async def main():
        gate, finish = Gate(1, 1), asyncio.Event()

        async def request():
            async with gate.slot():
                await finish.wait()

        first, second = (asyncio.create_task(request()) for _ in range(2))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        waiting = gate.waiting
        finish.set()
        await first
        return waiting, gate.running

    assert asyncio.run(main()) == (0, 0)
