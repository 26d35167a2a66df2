"""The chat API in front of a fake engine: answers, streams, limits, and clients that leave."""

import json
import threading

import pytest

from tests.serve.services import ask, until

pytestmark = pytest.mark.slow  # runs whole jobs

CHAT = "/v1/chat/completions"


def words_of(response):
    """The text of a streamed answer, piece by piece."""
    events = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event).get("choices", [])]
    return [choice["delta"].get("content", "") for choice in choices]


def test_an_answer_reaches_the_client_whole(client):
    answer = client.post(CHAT, json=ask("good morning")).json()
    assert answer["choices"][0]["message"]["content"] == "echo: good morning "
    assert answer["usage"]["completion_tokens"] == 3


def test_a_stream_arrives_piece_by_piece(client):
    with client.stream("POST", CHAT, json=ask("one two three", stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert words_of(response)[:4] == ["echo: ", "one ", "two ", "three "]


def test_models_are_listed_and_each_answers_by_its_name(client, engine):
    names = [row["id"] for row in client.get("/v1/models").json()["data"]]
    assert names == ["small", "large"]
    for name in names:
        client.post(CHAT, json=ask("hello", name))
        assert engine.seen["payload"]["model"] == name


def test_an_unknown_model_is_404_and_the_answer_lists_the_models(client, engine):
    response = client.post(CHAT, json=ask("hello", "huge"))
    assert response.status_code == 404 and "small, large" in response.json()["error"]["message"]
    assert engine.seen["requests"] == 0


def test_an_error_of_the_engine_reaches_the_client_with_its_message(client):
    response = client.post(CHAT, json=ask("please refuse", stream=True))
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the engine refused the request: this engine refuses"


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_stops_when_the_client_leaves(client, engine, stream):
    request = ask("words=1000 wait=0.05", stream=stream)
    thread = threading.Thread(target=leave_early, args=(client, request))
    thread.start()
    assert until(lambda: engine.seen["running"] == 1)
    thread.join()
    assert until(lambda: engine.seen["running"] == 0, 1.0)
    gate = client.service.models["small"].gate
    assert until(lambda: gate.running == 0)


def leave_early(client, request):
    """Send a request, and close the connection after 0.3 seconds."""
    import httpx2

    with httpx2.Client(base_url=client.base_url, timeout=0.3, trust_env=False) as other:
        try:
            with other.stream("POST", CHAT, json=request) as response:
                next(response.iter_lines())
        except httpx2.TimeoutException:
            pass


def test_a_client_that_leaves_the_queue_frees_its_place(start, engine):
    client = start(running=1, queue=1)
    gate = client.service.models["small"].gate
    first = threading.Thread(target=client.post, args=(CHAT,), kwargs={"json": ask("words=20 wait=0.05")})
    first.start()
    assert until(lambda: gate.running == 1)
    leave_early(client, ask("never asked"))
    assert until(lambda: gate.waiting == 0)
    first.join()
    assert engine.seen["requests"] == 1 and until(lambda: gate.running == 0)


def test_beyond_the_queue_a_request_is_refused_with_retry_after(start, engine):
    client = start(running=1, queue=1)
    gate = client.service.models["small"].gate
    threads = []
    for running, waiting in ((1, 0), (1, 1)):
        threads.append(threading.Thread(target=client.post, args=(CHAT,), kwargs={"json": ask("words=20 wait=0.05")}))
        threads[-1].start()
        assert until(lambda state=(running, waiting): (gate.running, gate.waiting) == state)
    response = client.post(CHAT, json=ask("one too many"))
    assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
    assert client.get("/api/state").json()["models"][0]["waiting"] == 1
    for thread in threads:
        thread.join()
    assert engine.seen["requests"] == 2


def test_a_conversation_beyond_the_context_is_refused_with_both_numbers(start, engine, tiny_llama):
    from compress.checkpoint.read import Checkpoint

    client = start(context=200, tokenizer=Checkpoint(tiny_llama).tokenizer)
    response = client.post(CHAT, json=ask("the quick brown fox " * 100))
    assert response.status_code == 400 and "200" in response.json()["error"]["message"]
    assert engine.seen["requests"] == 0


def test_max_tokens_never_exceeds_the_room_that_the_conversation_leaves(start, engine, tiny_llama):
    from compress.checkpoint.read import Checkpoint

    client = start(context=500, tokenizer=Checkpoint(tiny_llama).tokenizer)
    for asked in (None, 10_000):
        client.post(CHAT, json=ask("the quick brown fox", max_tokens=asked))
        assert 300 < engine.seen["payload"]["max_tokens"] < 500
    client.post(CHAT, json=ask("the quick brown fox", max_tokens=7))
    assert engine.seen["payload"]["max_tokens"] == 7


def test_an_api_only_service_has_no_page_and_reads_no_files(start):
    client = start(api_only=True)
    assert client.get("/").status_code == 404
    assert client.post("/api/document", content=b"x").status_code == 404
    assert client.get("/v1/models").status_code == 200


class Halted:
    """An engine that is in a fixed state."""

    def __init__(self, status, cause=""):
        self.status, self.cause = status, cause

    async def run(self):
        pass

    async def close(self):
        pass


@pytest.mark.parametrize("status", ["starting", "restarting", "ended"])
def test_an_engine_that_is_not_ready_is_named_with_its_cause(start, engine, status):
    client = start(engine=Halted(status, "out of memory"), names=("small",))
    response = client.post(CHAT, json=ask("hello"))
    assert response.status_code == 503 and "out of memory" in response.json()["error"]["message"]
    assert "retry-after" in response.headers and engine.seen["requests"] == 0
    assert client.get("/health").status_code == 503
