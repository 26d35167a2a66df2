"""Limits of a JSON schema before it reaches the engine.

The engine compiles a schema into a grammar. With a huge or deeply nested schema, or one that counts to a million, it
runs for minutes or crashes, so such a schema is refused here. A schema can refer only to itself: nothing is fetched.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

MOST_BYTES, MOST_DEPTH, MOST_COUNT, PATTERN_LENGTH = 32_000, 16, 1000, 200
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
FOREIGN = ("$id", "$schema", "$anchor", "$dynamicAnchor", "$vocabulary", "id")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains")
DATA = ("const", "enum", "default", "examples")  # their values are no schemas
NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # their keys are free
REPEAT = re.compile(r"\{(\d*),?(\d*)\}")


def check_schema(schema: Any) -> None:
    """Raises ValueError, with the reason, if a schema exceeds the limits or is not a JSON schema."""
    if not isinstance(schema, dict):
        raise ValueError("the schema must be a JSON object")
    if (depth := nesting(schema)) > MOST_DEPTH:
        raise ValueError(f"the schema is nested {depth} levels deep; at most {MOST_DEPTH} are accepted")
    if (size := len(json.dumps(schema))) > MOST_BYTES:
        raise ValueError(f"the schema has {size:,} bytes; at most {MOST_BYTES:,} are accepted")
    for part in parts(schema):
        check_part(part, schema)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the schema"
        raise ValueError(f"{where}: {error.message:.200}") from None


def nesting(value: Any) -> int:
    """The depth of nested objects and lists, without recursion. Stops at the first level beyond MOST_DEPTH."""
    level, depth = [value], 0
    while level and depth <= MOST_DEPTH:
        level = [child for one in level if isinstance(one, dict | list) for child in children(one)]
        depth += bool(level)
    return depth


def children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every subschema, the whole one first. Data in `enum` and `const` is left out."""
    if isinstance(schema, list):
        for one in schema:
            yield from parts(one)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key in NAMES and isinstance(value, dict):
                for one in value.values():
                    yield from parts(one)
            elif key not in DATA:
                yield from parts(value)


def check_part(part: dict[str, Any], whole: dict[str, Any]) -> None:
    """Raises ValueError for a subschema with a reference to another schema, a large count or a long pattern."""
    for key in REFERENCES:
        if key in part:
            check_reference(part[key], whole)
    if foreign := [key for key in FOREIGN if key in part and part is not whole]:
        raise ValueError(f"{foreign[0]} is accepted at the top of the schema only")
    for key in COUNTS:
        if isinstance(part.get(key), int | float) and part[key] > MOST_COUNT:
            raise ValueError(f"{key}: {part[key]:g} is too large; at most {MOST_COUNT} is accepted")
    properties = part.get("patternProperties")
    patterns = [part.get("pattern"), *(properties if isinstance(properties, dict) else ())]
    for pattern in filter(None, patterns):
        check_pattern(pattern)


def check_reference(reference: Any, whole: dict[str, Any]) -> None:
    """Raise ValueError unless a reference is "#" or the path of a part of the same schema."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise ValueError(f"$ref: {reference!r:.80} points outside the schema; only #/... is accepted")
    place: Any = whole
    for key in reference.removeprefix("#").split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        index = int(name) if isinstance(place, list) and name.isdecimal() else name
        try:
            place = place[index]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"$ref: {reference:.80} does not exist in the schema") from None


def check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or len(pattern) > PATTERN_LENGTH:
        raise ValueError(f"pattern: must be a text of at most {PATTERN_LENGTH} characters")
    counts = [int(text) for pair in REPEAT.findall(pattern) for text in pair if text]
    if max(counts, default=0) > MOST_COUNT:
        raise ValueError(f"pattern: a repeat count is above {MOST_COUNT}; lower it")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern: {pattern:.60}: {error}") from None
