"""The fields of a chat request that reach the engine. Any other field is an error that names the field."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.serve.messages import ChatMessage, read_messages
from compress.serve.schema.rules import check_schema

Check = Callable[[Any], Any]
NO_EFFECT = ("user", "metadata", "store", "service_tier", "parallel_tool_calls")  # what clients send on their own
MOST_STOPS, STOP_LENGTH = 8, 200


@dataclass(frozen=True)
class ChatRequest:
    """A chat request after all checks. `options` is the payload for the engine without model and messages."""

    model: str
    messages: list[ChatMessage]
    options: dict[str, Any]

    @property
    def max_tokens(self) -> int | None:
        return self.options.get("max_tokens")


def number(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("must be a number")
        if not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    return check


def integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low:,} to {high:,}")
        return value

    return check


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def stops(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not good or not all(isinstance(text, str) and 0 < len(text) <= STOP_LENGTH for text in texts):
        raise ValueError(f"must be a text, or a list of at most {MOST_STOPS} texts")
    return texts


def stream_options(value: Any) -> dict[str, bool]:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise ValueError("only include_usage is accepted")
    return {name: boolean(flag) for name, flag in value.items()}


def response_format(value: Any) -> dict[str, Any]:
    """OpenAI's `response_format`: text, json_object, or json_schema with a schema that passes `check_schema`."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("text", "json_object"):
        return {"type": kind}
    inner = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(inner, dict) or "schema" not in inner:
        raise ValueError("must be text, json_object, or json_schema with {name, schema}")
    check_schema(inner["schema"])
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": inner["schema"], "strict": True}}


FIELDS: dict[str, Check] = {
    "stream": boolean,
    "stream_options": stream_options,
    "temperature": number(0, 2),
    "top_p": number(1e-6, 1),
    "top_k": integer(-1, 1_000_000),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0.01, 2),
    "max_tokens": integer(1, 10_000_000),
    "max_completion_tokens": integer(1, 10_000_000),
    "n": integer(1, 1),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": stops,
    "response_format": response_format,
}


def read_chat(body: Any) -> ChatRequest:
    """The request in a JSON body. Raises ValueError that names the field."""
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    values = {name: value for name, value in body.items() if value is not None and name not in NO_EFFECT}
    model, messages = values.pop("model", None), read_messages(values.pop("messages", None))
    if not isinstance(model, str):
        raise ValueError("model: must be the name of a model; GET /v1/models lists them")
    options = {name: read_field(name, value) for name, value in values.items()}
    if "max_completion_tokens" in options:
        options["max_tokens"] = options.pop("max_completion_tokens")
    return ChatRequest(model, messages, options)


def read_field(name: str, value: Any) -> Any:
    if name not in FIELDS:
        raise ValueError(f"{name[:60]}: this field is not accepted; use {', '.join(FIELDS)}")
    try:
        return FIELDS[name](value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
