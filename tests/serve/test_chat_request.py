"""Only checked fields of a chat request reach the engine."""

import pytest

from compress.serve.chat_request import read_chat

USER = {"role": "user", "content": "hello"}


def body(**fields):
    return {"model": "small", "messages": [USER], **fields}


def test_plain_fields_pass_unchanged():
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["END"], "stream": True}
    assert read_chat(body(**fields)).options == fields


def test_null_means_the_default_and_the_new_name_of_max_tokens_works():
    request = read_chat(body(temperature=None, tools=None, user="me", max_completion_tokens=5))
    assert request.options == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n:"),
        ({"n": True}, "n:"),
        ({"temperature": float("inf")}, "temperature:"),
        ({"temperature": 3}, "temperature:"),
        ({"temperature": 10**400}, "temperature:"),
        ({"temperature": float("nan")}, "temperature:"),
        ({"top_p": 0}, "top_p:"),
        ({"max_tokens": 0}, "max_tokens:"),
        ({"max_tokens": "9"}, "max_tokens:"),
        ({"stop": ["x"] * 9}, "stop:"),
        ({"stop": [""]}, "stop:"),
        ({"stream": 1}, "stream:"),
        ({"stream_options": {"x": True}}, "stream_options:"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs:"),
        ({"chat_template": "{{ x }}"}, "chat_template:"),
        ({"tools": []}, "tools:"),
        ({"response_format": {"type": "grammar"}}, "response_format:"),
        ({"response_format": {"type": "json_schema"}}, "response_format:"),
        ({"model": None}, "model:"),
        ({"messages": []}, "messages:"),
        ({"messages": [USER] * 1001}, "messages:"),
    ],
    ids=str,
)
def test_any_other_field_or_value_is_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        read_chat(body(**fields))


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_body_that_is_no_object_is_refused(value):
    with pytest.raises(ValueError, match="JSON object"):
        read_chat(value)


def test_a_schema_reaches_the_engine_and_nothing_beside_it():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    format = {"type": "json_schema", "json_schema": {"name": "../x", "schema": schema, "extra": 1}}
    assert read_chat(body(response_format=format)).options["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
