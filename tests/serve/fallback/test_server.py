"""transformers behind the API: the same text as its other runtime, streamed, stopped and validated."""

import json
import time

import httpx2
import pytest

from calibration.chat import encode_text, render_prompt
from compress.checkpoint.load import open_for_text, stop_tokens
from compress.core.sampling import Sampling
from compress.model.sample import continue_prompts
from compress.serve.chat_request import FIELDS
from compress.serve.fallback.answer import FALLBACK_FIELDS, NEUTRAL, FallbackModel, before_stop_text, with_json_rule
from compress.serve.fallback.server import FallbackServer
from tests.serve.services import running, until

MESSAGES = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return FallbackModel(open_for_text(tiny_llama), 256, "cpu")


@pytest.fixture(scope="module")
def client(model):
    with running(FallbackServer(model, "tiny").app) as url, httpx2.Client(base_url=url, trust_env=False) as opened:
        yield opened


def ask(client, **fields):
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, "temperature": 0, **fields})


def streamed(client, **fields):
    lines = ask(client, stream=True, stream_options={"include_usage": True}, **fields).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    return text, events


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_stream_and_the_whole_answer_are_the_runtimes_text(client, model, tiny_llama, temperature):
    ids = encode_text(model.tokenizer, render_prompt(model.tokenizer, MESSAGES, "test"))
    sampling = Sampling(20, temperature, 0.9, 5)
    stops = stop_tokens(open_for_text(tiny_llama))
    (answer,) = continue_prompts(model.model, [ids], sampling, stops, [sampling.seed_of(ids, 0)])
    expected = model.tokenizer.decode(answer.ids, skip_special_tokens=True)
    options = {"max_tokens": 20, "temperature": temperature, "top_p": 0.9, "seed": 5}
    whole = ask(client, **options).json()
    assert whole["choices"][0]["message"]["content"] == expected
    text, events = streamed(client, **options)
    assert text == expected and len(events) > 5
    assert whole["usage"] == events[-1]["usage"]
    assert whole["usage"]["prompt_tokens"] == len(ids)


def test_a_cut_answer_ends_with_the_reason_length(client):
    _, events = streamed(client, max_tokens=3)
    assert events[-2]["choices"][0]["finish_reason"] == "length" and events[-1]["usage"]["completion_tokens"] == 3


def test_requests_without_a_seed_get_different_answers(client):
    answers = {ask(client, temperature=1, max_tokens=20).json()["choices"][0]["message"]["content"] for _ in range(3)}
    seeded = {
        ask(client, temperature=1, max_tokens=20, seed=0).json()["choices"][0]["message"]["content"] for _ in "ab"
    }
    assert len(answers) == 3 and len(seeded) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 5),
        ("min_p", 0.1),
        ("presence_penalty", 1),
        ("frequency_penalty", -1),
        ("repetition_penalty", 1.1),
        ("logit_bias", {}),
    ],
)
def test_a_field_that_transformers_would_ignore_is_refused(client, field, value):
    response = ask(client, max_tokens=1, **{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"{field}: has no effect with transformers; leave it out"


def test_a_value_that_changes_nothing_is_accepted(client):
    neutral = {name: values[-1] for name, values in NEUTRAL.items()}
    assert ask(client, max_tokens=1, **neutral).status_code == 200


def test_every_field_of_the_api_is_used_or_refused_by_transformers():
    assert set(FIELDS) - {"max_completion_tokens"} == (FALLBACK_FIELDS - {"model", "messages"}) | NEUTRAL.keys()


def test_a_whole_answer_stops_when_its_client_leaves(model, monkeypatch):
    seen = []

    def pieces(prompt, payload, answered):
        while True:
            time.sleep(0.01)
            seen.append(len(seen))
            yield "x"

    monkeypatch.setattr(model, "pieces", pieces)
    with running(FallbackServer(model, "tiny").app) as url, httpx2.Client(base_url=url, trust_env=False) as opened:
        with pytest.raises(httpx2.TimeoutException):
            opened.post("/v1/chat/completions", json={"messages": MESSAGES}, timeout=0.3)
        assert seen and until(lambda: still(seen))


def still(seen):
    """Whether nothing is added within 0.2 seconds."""
    count = len(seen)
    time.sleep(0.2)
    return len(seen) == count


def test_a_conversation_beyond_the_context_is_refused(client):
    response = ask(client, messages=[{"role": "user", "content": "the quick brown fox " * 200}])
    assert response.status_code == 400 and "256" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("stops", "text"), [(["wo"], "hello "), (["l", "e"], "h"), (["none"], "hello world"), ([], "hello world")]
)
def test_text_ends_before_the_first_stop_however_it_is_cut(stops, text):
    for size in (1, 2, 3, 20):
        pieces = ["hello world"[start : start + size] for start in range(0, 11, size)]
        assert "".join(before_stop_text(iter(pieces), stops)) == text


def test_a_json_request_adds_the_schema_to_the_system_message():
    format = {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}
    (system, *rest) = with_json_rule([{"role": "system", "content": "Be brief."}, *MESSAGES], format)
    assert system["content"].startswith("Be brief.") and '{"type": "array"}' in system["content"] and rest == MESSAGES
    assert with_json_rule(MESSAGES, {"type": "json_object"})[0]["role"] == "system"
    assert with_json_rule(MESSAGES, {"type": "text"}) == MESSAGES
