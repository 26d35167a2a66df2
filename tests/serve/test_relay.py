"""An engine that dies in mid-answer: the client learns it, and nothing is left running."""

import asyncio
import subprocess
import sys

import httpx2
import pytest

from compress.serve import connected
from compress.serve.access import Access
from compress.serve.app import make_app
from compress.serve.gate import Gate
from compress.serve.relay import Relay
from compress.serve.service import ServedModel, Service
from compress.serve.tokens import TokenCounter
from compress.serve.upstream import Upstream
from tests.serve.services import ask, running, until

CHAT = "/v1/chat/completions"


class Explained:
    """An engine whose end has a known cause."""

    status, cause = "ready", "it was ended by SIGKILL"

    async def run(self):
        pass

    async def close(self):
        pass


class Endless:
    """An engine's answer without end. `open` is True while the engine computes it."""

    def __init__(self):
        self.headers = {"content-type": "text/event-stream"}
        self.open = False

    async def __aenter__(self):
        self.open = True
        return self

    async def __aexit__(self, *_):
        self.open = False

    async def aiter_raw(self):
        while True:
            yield b"data: {}"


def test_a_client_that_does_not_read_frees_its_slot(monkeypatch):
    answer = Endless()
    monkeypatch.setattr(connected.impatient, "__defaults__", (0.01,))

    async def never(*_):
        await asyncio.sleep(1000)

    asyncio.run(asyncio.wait_for(Relay(lambda: answer, str)({}, never, never), 5))
    assert not answer.open


@pytest.fixture
def dying(tmp_path):
    """A client of a service whose engine kills itself when a message ends with "die"."""
    socket = tmp_path / "0.sock"
    process = subprocess.Popen([sys.executable, "scripts/fake_engine.py", "--uds", str(socket)])
    assert until(socket.exists, 30)
    upstream = Upstream("http://engine", "fake", socket=str(socket))
    model = ServedModel("fake", upstream, Gate(2, 2), TokenCounter(None), "vllm", engine=Explained())
    app = make_app(Service({"fake": model}), Access())
    with running(app) as url, httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        client.model = model
        yield client
    process.kill()
    process.wait()


def test_a_stream_ends_with_the_error_and_its_cause(dying):
    text = dying.post(CHAT, json=ask("one two three four die", "fake", stream=True)).text
    assert '"content": "echo: "' in text and "the engine broke off: it was ended by SIGKILL" in text
    assert "[DONE]" not in text
    assert until(lambda: dying.model.gate.running == 0)


def test_a_whole_answer_is_an_error_and_the_next_request_too(dying):
    response = dying.post(CHAT, json=ask("one two three four die", "fake"))
    assert response.status_code in (502, 503) and "the engine" in response.json()["error"]["message"]
    response = dying.post(CHAT, json=ask("hello", "fake"))
    assert response.status_code == 503 and "does not answer" in response.json()["error"]["message"]
