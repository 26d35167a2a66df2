#!/usr/bin/env python
"""Measure `qcompress serve` under load: python scripts/bench_serve.py [--upstream URL --model NAME]

1, 8 and 32 clients stream answers at once, directly from the engine and through the service, in turns. Every answer is
compared with the one that its question must have, so a lost or mixed-up answer is counted. The added time to the first
token is the difference of both, at the median and at p95. Then --requests more answers show whether the memory of the
service grows. Without --upstream, the engine is scripts/fake_engine.py, whose answers repeat the question at a known
speed. The exit code is 1 if an answer is lost or mixed up, or beyond a limit: 30 ms at the median, 100 ms at p95. With
--upstream only lost answers count, because the first token of a real engine varies by more than the limits.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx2

ROOT = Path(__file__).parents[1]
CLIENTS, WORDS = (1, 8, 32), 30
WAIT = 0.05  # seconds between two words of the fake engine: 20 tokens/s for each client
MEDIAN_MS, P95_MS, GROWTH_MB = 30.0, 100.0, 20.0
FAKE_PORT, PORT = 8601, 8602


@contextmanager
def process(*arguments: str, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python program, when its server answers at `url`."""
    started = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                httpx2.get(url, timeout=5)
                break
            except httpx2.HTTPError:
                if started.poll() is not None:
                    raise SystemExit(f"{' '.join(arguments)} has ended") from None
                time.sleep(0.1)
        yield started
    finally:
        started.terminate()
        started.wait(30)


async def ask(client: httpx2.AsyncClient, model: str, number: int, exact: bool) -> dict[str, Any]:
    """One streamed answer: ms to the first token, whether it is complete, and whether it is the right one."""
    text = f"number{number} words={WORDS}"
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": WORDS}
    started, first, words, done = time.perf_counter(), None, [], False
    async with client.stream("POST", "/v1/chat/completions", json=body | {"temperature": 0}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            done |= line == "data: [DONE]"
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if choice["delta"].get("content"):
                        first = first or time.perf_counter() - started
                        words.append(choice["delta"]["content"])
    answer = "".join(words)
    right = f"number{number} " in answer if exact else bool(answer)
    return {"first_ms": 1000 * (first or 0), "complete": done and first is not None, "right": right, "answer": answer}


async def load(url: str, model: str, clients: int, count: int, exact: bool, offset: int = 0) -> list[dict[str, Any]]:
    """`count` answers, `clients` of them at once."""
    numbers = iter(range(offset, offset + count))
    rows = []
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def one(place: int) -> None:
            await asyncio.sleep(place / clients * WORDS * WAIT)  # people do not ask in the same millisecond
            for number in numbers:
                rows.append(await ask(client, model, number, exact))

        await asyncio.gather(*(one(place) for place in range(clients)))
    return rows


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def compare(engine: str, service: str, model: str, clients: int, exact: bool, rounds: int) -> dict[str, Any]:
    """A row: first tokens of both, and what the service adds. Engine and service take turns."""
    direct, through = [], []
    count = max(16, 2 * clients)
    for turn in range(rounds):
        for url, rows in ((engine, direct), (service, through)):
            rows += asyncio.run(load(url, model, clients, count, exact, offset=1000 * turn))
    ms = {name: [row["first_ms"] for row in rows] for name, rows in (("direct", direct), ("through", through))}
    return {
        "clients": clients,
        "answers": len(through),
        "lost": sum(not row["complete"] for row in through),
        "mixed_up": sum(not row["right"] for row in through),
        "direct_ms": statistics.median(ms["direct"]),
        "through_ms": statistics.median(ms["through"]),
        "added_median_ms": statistics.median(ms["through"]) - statistics.median(ms["direct"]),
        "added_p95_ms": percentile(ms["through"], 0.95) - percentile(ms["direct"], 0.95),
    }


def memory_mb(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def growth(url: str, model: str, process_id: int, requests: int, exact: bool) -> dict[str, Any]:
    """The resident memory of the service before and after so many answers."""
    asyncio.run(load(url, model, 32, 100, exact))
    before = memory_mb(process_id)
    rows = asyncio.run(load(url, model, 32, requests, exact))
    lost = sum(not row["complete"] or not row["right"] for row in rows)
    return {"requests": requests, "lost": lost, "before_mb": before, "after_mb": memory_mb(process_id)}


def beyond_queue(url: str, model: str, clients: int) -> dict[str, int]:
    """How many of `clients` requests at once are answered, and refused with Retry-After. Nothing else may happen."""

    async def main() -> dict[str, int]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as client:
            body = {"model": model, "messages": [{"role": "user", "content": "words=50"}], "max_tokens": 50}
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(clients)))
        refused = [one for one in replies if one.status_code == 503 and int(one.headers["retry-after"]) > 0]
        return {"clients": clients, "answered": sum(one.status_code == 200 for one in replies), "refused": len(refused)}

    return asyncio.run(main())


def faults(rows: list[dict[str, Any]], memory: dict[str, Any], queue: dict[str, int], exact: bool) -> list[str]:
    """What is beyond a limit."""
    lines = []
    for row in rows:
        who = f"{row['clients']} clients"
        if row["lost"] or row["mixed_up"]:
            lines.append(f"{who}: {row['lost']} lost, {row['mixed_up']} mixed up")
        if exact and row["added_median_ms"] > MEDIAN_MS:
            lines.append(f"{who}: {row['added_median_ms']:.0f} ms at the median")
        if exact and row["added_p95_ms"] > P95_MS:
            lines.append(f"{who}: {row['added_p95_ms']:.0f} ms at p95")
    if memory["lost"] or memory["after_mb"] - memory["before_mb"] > GROWTH_MB:
        lines.append(f"memory: {memory}")
    if queue["answered"] + queue["refused"] != queue["clients"]:
        lines.append(f"queue: {queue}")
    return lines


@click.command(help=__doc__)
@click.option("--upstream", help="URL of a running engine.  [default: scripts/fake_engine.py]")
@click.option("--model", default="fake", show_default=True, help="Name of the model.")
@click.option("--requests", default=1000, show_default=True, help="Answers after which memory is compared.")
@click.option("--rounds", default=3, show_default=True, help="Turns of engine and service.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File for the rows as JSON.")
def main(upstream: str | None, model: str, requests: int, rounds: int, out: Path | None) -> None:
    engine, service = upstream or f"http://127.0.0.1:{FAKE_PORT}", f"http://127.0.0.1:{PORT}"
    exact = upstream is None
    fake = (
        ["scripts/fake_engine.py", "--port", str(FAKE_PORT), "--wait", str(WAIT)]
        if exact
        else ["-c", "import time; time.sleep(1e9)"]
    )
    serve = ["-m", "compress.cli", "serve", "--upstream", engine, "--port", str(PORT), "--queue", "64"]
    with process(*fake, url=f"{engine}/v1/models"), process(*serve, url=f"{service}/health") as running:
        rows = [compare(engine, service, model, clients, exact, rounds) for clients in CLIENTS]
        memory = growth(service, model, running.pid, requests, exact)
        queue = beyond_queue(service, model, 200) if exact else {"clients": 0, "answered": 0, "refused": 0}
    for row in rows:
        click.echo(
            "  ".join(
                f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    click.echo(
        f"memory: {memory['before_mb']:.0f} MB, after {requests} answers {memory['after_mb']:.0f} MB; queue: {queue}"
    )
    if out:
        out.write_text(json.dumps({"rows": rows, "memory": memory, "queue": queue}, indent=2) + "\n")
    if problems := faults(rows, memory, queue, exact):
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
