"""JSON answers. They must be valid by a schema (jsonschema, draft 2020-12) and contain the required values.

    expected: {"schema": {"type": "object", ...}, "values": {"user.name": "Mia", "tags.0": "new"}}

A path in `values` joins keys and indices with dots. Texts are compared in lower case, numbers by value.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, check_one_turn
from compress.evaluate.tasks.spelling import excerpt, normalize

DATA_KEYS = ("const", "enum", "default", "examples")  # keys whose values are no schemas
DECODER = json.JSONDecoder()


def check(item: Item) -> None:
    check_one_turn(item)
    if not isinstance(item.expected.get("schema"), dict):
        raise ValueError("expected.schema must be a JSON schema, an object")
    if not isinstance(item.expected.get("values", {}), dict):
        raise ValueError("expected.values must be an object that maps paths to values")
    try:
        Draft202012Validator.check_schema(item.expected["schema"])
    except SchemaError as error:
        raise ValueError(f"expected.schema is not a JSON schema: {error.message}") from None
    for reference in references(item.expected["schema"]):
        try:
            validator(item.expected["schema"]).evolve(schema={"$ref": reference}).is_valid(None)
        except Unresolvable:
            raise ValueError(f"expected.schema: $ref {reference} does not exist in the schema") from None


def validator(schema: Any) -> Draft202012Validator:
    """The schema's validator. It resolves references inside the schema only, and downloads nothing."""
    return Draft202012Validator(schema, registry=REGISTRY)


def references(schema: Any) -> Iterator[str]:
    """Every $ref of a schema. Parts with an $id are left out, because an $id changes what a $ref means."""
    if isinstance(schema, dict) and "$id" not in schema:
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for key, part in schema.items():
            if key not in DATA_KEYS:
                yield from references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from references(part)


def find_json(answer: str) -> Any:
    """The longest JSON object or list in the answer, with or without a code fence.

    Raises ValueError if the answer contains no JSON.
    """
    candidates: list[tuple[int, Any]] = []
    end = 0
    for start, sign in enumerate(answer):
        if sign in "{[" and start >= end:
            try:
                value, end = DECODER.raw_decode(answer, start)
            except RecursionError:
                raise ValueError("the JSON is nested too deeply") from None
            except ValueError:  # no JSON here, or a number of more than 4300 digits
                continue
            candidates.append((end - start, value))
    if not candidates:
        raise ValueError("no JSON")
    return max(candidates, key=lambda pair: pair[0])[1]


def value_at(value: Any, path: str) -> Any:
    """The value at a dotted path. Raises KeyError, IndexError or TypeError if the path does not exist."""
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) and key.isdecimal() else value[key]
    return value


def equal(value: Any, target: Any) -> bool:
    """Whether two values agree. Case, width and punctuation of texts are ignored; true and 1 differ."""
    if isinstance(value, str) and isinstance(target, str):
        return normalize(value) == normalize(target)
    return isinstance(value, bool) == isinstance(target, bool) and bool(value == target)


def score(expected: Expected, answers: Sequence[str]) -> Score:
    """1 if the answer's JSON is valid and contains all required values, else 0."""
    try:
        value = find_json(answers[0])
    except ValueError as error:
        return Score(0.0, f"{error}: {excerpt(answers[0])}")
    if fault := best_match(validator(expected["schema"]).iter_errors(value)):
        return Score(0.0, f"not valid: {excerpt(fault.message)}")
    for path, target in expected.get("values", {}).items():
        try:
            part = value_at(value, path)
        except (KeyError, IndexError, TypeError):
            return Score(0.0, f"no {path}")
        if not equal(part, target):
            return Score(0.0, f"{path} is {excerpt(repr(part))}, not {target!r}")
    return Score(1.0, "valid, all values right")


KIND = Kind(
    name="json",
    max_tokens=200,
    instruction={
        "en": "Reply with one JSON value and nothing else.",
        "zh": "只回复一个 JSON 值，不要写其他内容。",
    },
    check=check,
    score=score,
    example=lambda expected: ["{}"],
)
