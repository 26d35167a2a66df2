"""JSON to a schema: valid by the schema (jsonschema, draft 2020-12), and the required values right.

    expected: {"schema": {"type": "object", ...}, "values": {"user.name": "Mia", "tags.0": "new"}}

A path of `values` is keys and indices set apart by dots. Texts are compared without case, numbers by value.
"""

import json
from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, need_one_turn
from compress.evaluate.tasks.spelling import excerpt, normalize

DECODER = json.JSONDecoder()


def check(item: Item) -> None:
    need_one_turn(item)
    if not isinstance(item.expected.get("schema"), dict):
        raise ValueError("expected.schema must be a JSON schema, an object")
    if not isinstance(item.expected.get("values", {}), dict):
        raise ValueError("expected.values must be an object from paths to values")
    try:
        Draft202012Validator.check_schema(item.expected["schema"])
    except SchemaError as error:
        raise ValueError(f"expected.schema is no JSON schema: {error.message}") from None


def find_json(answer: str) -> Any:
    """The longest object or list in the answer that parses, fenced or not. ValueError when there is none."""
    found: list[tuple[int, Any]] = []
    end = 0
    for start, sign in enumerate(answer):
        if sign in "{[" and start >= end:
            try:
                value, end = DECODER.raw_decode(answer, start)
            except (json.JSONDecodeError, RecursionError):
                continue
            found.append((end - start, value))
    if not found:
        raise ValueError("no JSON")
    return max(found, key=lambda pair: pair[0])[1]


def value_at(value: Any, path: str) -> Any:
    """The value under a dotted path. KeyError, IndexError or TypeError where there is none."""
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) and key.isdecimal() else value[key]
    return value


def same(found: Any, wanted: Any) -> bool:
    """Texts without case, width and punctuation; numbers by value, but true is not 1; anything else exactly."""
    if isinstance(found, str) and isinstance(wanted, str):
        return normalize(found) == normalize(wanted)
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def score(expected: Expected, answers: Sequence[str]) -> Score:
    """1 when the answer's JSON is valid and holds every required value."""
    try:
        value = find_json(answers[0])
    except ValueError:
        return Score(0.0, f"no JSON: {excerpt(answers[0])}")
    if error := best_match(Draft202012Validator(expected["schema"]).iter_errors(value)):
        return Score(0.0, f"not valid: {excerpt(error.message)}")
    for path, wanted in expected.get("values", {}).items():
        try:
            found = value_at(value, path)
        except (KeyError, IndexError, TypeError):
            return Score(0.0, f"no {path}")
        if not same(found, wanted):
            return Score(0.0, f"{path} is {excerpt(repr(found))}, not {wanted!r}")
    return Score(1.0, "valid, and all values right")


KIND = Kind(
    name="json",
    max_tokens=200,
    instruction={
        "en": "Reply with one JSON value and nothing else.",
        "zh": "只回复一个 JSON 值，不要写其他内容。",
    },
    check=check,
    score=score,
)
