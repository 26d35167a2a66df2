"""A running service in front of a fake engine, each on a real port: cancelling needs real connections."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from compress.serve.app import make_app
from compress.serve.gate import Gate
from compress.serve.security import Access
from compress.serve.service import ServedModel, Service
from compress.serve.tokens import TokenCounter
from compress.serve.upstream import Upstream
from scripts.fake_engine import FakeEngine


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of an ASGI app on a free port of 127.0.0.1, served by uvicorn in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def engine_server() -> Iterator[tuple[FakeEngine, str]]:
    fake = FakeEngine(("small", "large"))
    with running(fake.app) as url:
        yield fake, url


@pytest.fixture
def engine(engine_server: tuple[FakeEngine, str]) -> FakeEngine:
    """The fake engine, with its counters at zero."""
    fake, _ = engine_server
    fake.seen = {"requests": 0, "running": 0, "aborted": 0, "payload": None}
    return fake


Start = Callable[..., httpx2.Client]


@pytest.fixture
def start(engine: FakeEngine, engine_server: tuple[FakeEngine, str]) -> Iterator[Start]:
    """start(access, running=, queue=, context=, tokenizer=, ...) runs a service; it returns a client of it."""
    opened: list[Any] = []

    def start_service(access: Access | None = None, **options: Any) -> httpx2.Client:
        service = make_service(engine_server[1], **options)
        context = running(make_app(service, access or Access()))
        url = context.__enter__()
        client = httpx2.Client(base_url=url, timeout=30, trust_env=False)
        client.service = service  # type: ignore[attr-defined]
        opened.extend([client, context])
        return client

    yield start_service
    for one in opened:
        one.close() if isinstance(one, httpx2.Client) else one.__exit__(None, None, None)


def make_service(
    url: str,
    *,
    names: tuple[str, ...] = ("small", "large"),
    running: int = 8,
    queue: int = 8,
    context: int | None = None,
    tokenizer: Any = None,
    engine: Any = None,
    **options: Any,
) -> Service:
    models = {
        name: ServedModel(
            name, Upstream(url, name), Gate(running, queue), TokenCounter(tokenizer), "upstream", context, engine
        )
        for name in names
    }
    return Service(models, **options)


@pytest.fixture
def client(start: Start) -> httpx2.Client:
    """A client of a service with default settings."""
    return start()


def ask(text: str, model: str = "small", **fields: Any) -> dict[str, Any]:
    """The body of a chat request with one message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether a condition became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
