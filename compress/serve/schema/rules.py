"""Limits of a JSON schema before it reaches the engine.

The engine compiles a schema into a grammar. With a huge or deeply nested schema, or one that counts to a million, it
runs for minutes or crashes, so such a schema is refused here. A schema can refer only to itself: nothing is fetched.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from compress.serve.schema.strict_json import children, nesting

Part = dict[str, Any]
MOST_BYTES, MOST_DEPTH, MOST_COUNT, PATTERN_LENGTH = 32_000, 16, 1000, 200
MOST_PARTS, MOST_ITEMS, MOST_TYPES = 2000, 500, 7  # subschemas; values of a list; JSON has seven types
MOST_REPEATS = 100_000  # the product of all counts around a subschema, and the length of a pattern without counts
MOST_NUMBER = 2**63
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
FOREIGN = ("$id", "$schema", "$anchor", "$dynamicAnchor", "$vocabulary", "id")
COUNTS = (
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
DATA = ("const", "enum", "default", "examples")  # their values are no schemas
NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # their keys are free
REPEAT = re.compile(r"\{(\d*),?(\d*)\}")
ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)  # of a pattern


def check_schema(schema: Any) -> None:
    """Raises ValueError, with the reason, if a schema exceeds the limits or is not a JSON schema."""
    if not isinstance(schema, dict):
        raise ValueError("the schema must be a JSON object")
    if (depth := nesting(schema, MOST_DEPTH)) > MOST_DEPTH:
        raise ValueError(f"the schema is nested {depth} levels deep; at most {MOST_DEPTH} are accepted")
    check_values(schema)
    if (size := len(json.dumps(schema))) > MOST_BYTES:
        raise ValueError(f"the schema has {size:,} bytes; at most {MOST_BYTES:,} are accepted")
    subschemas = [*islice(parts(schema), MOST_PARTS + 1)]
    if len(subschemas) > MOST_PARTS:
        raise ValueError(f"the schema has more than {MOST_PARTS:,} subschemas; use fewer")
    places = {id(part) for part, _ in subschemas}
    for part, repeats in subschemas:
        check_part(part, schema, places)
        check_repeats(part, repeats)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the schema"
        raise ValueError(f"{where}: {error.message:.200}") from None


def check_values(schema: Part) -> None:
    """Raises ValueError for a list with many values, or a number that a float or 64 bits cannot hold."""
    values = [schema]
    while values:
        value: Any = values.pop()
        if isinstance(value, list) and len(value) > MOST_ITEMS:
            raise ValueError(f"a list has {len(value):,} values; at most {MOST_ITEMS} are accepted")
        if isinstance(value, int | float) and not -MOST_NUMBER <= value <= MOST_NUMBER:
            raise ValueError(f"a number is too large: {f'{value}':.40}; use at most {MOST_NUMBER}")
        values += children(value) if isinstance(value, dict | list) else []


def parts(schema: Any, repeats: float = 1) -> Iterator[tuple[Part, float]]:
    """Every subschema, the whole one first, with the product of the counts around it.

    Data in `enum` and `const` is left out.
    """
    if isinstance(schema, list):
        for one in schema:
            yield from parts(one, repeats)
    elif isinstance(schema, dict):
        yield schema, repeats
        repeats *= largest_count(schema)
        for key, value in schema.items():
            if key in NAMES and isinstance(value, dict):
                yield from parts([*value.values()], repeats)
            elif key not in DATA:
                yield from parts(value, repeats)


def largest_count(part: Part) -> float:
    return max([1, *(part[key] for key in COUNTS if isinstance(part.get(key), int | float))])


def check_part(part: Part, whole: Part, places: set[int]) -> None:
    """Raises ValueError for a reference to anything but a subschema, a list of many types or a long pattern."""
    for key in REFERENCES:
        if key in part:
            check_reference(part[key], whole, places)
    if foreign := [key for key in FOREIGN if key in part and part is not whole]:
        raise ValueError(f"{foreign[0]} is accepted at the top of the schema only")
    if isinstance(part.get("type"), list) and len(part["type"]) > MOST_TYPES:
        raise ValueError(f"type: has {len(part['type'])} values; at most {MOST_TYPES} are accepted")
    properties = part.get("patternProperties")
    patterns = [part.get("pattern"), *(properties if isinstance(properties, dict) else ())]
    for pattern in filter(None, patterns):
        check_pattern(pattern)


def check_repeats(part: Part, repeats: float) -> None:
    """Raises ValueError if a count is too large, by itself or multiplied by those around it."""
    for key in COUNTS:
        count = part.get(key)
        if isinstance(count, int | float) and count > MOST_COUNT:
            raise ValueError(f"{key}: {count:g} is too large; at most {MOST_COUNT} is accepted")
        if isinstance(count, int | float) and count * repeats > MOST_REPEATS:
            raise ValueError(
                f"{key}: {count:g} times the counts around it is {count * repeats:,.0f}; "
                f"at most {MOST_REPEATS:,} is accepted"
            )


def check_reference(reference: Any, whole: Part, places: set[int]) -> None:
    """Raise ValueError unless a reference is "#" or the path of a subschema, whose identity is in `places`."""
    local = isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))
    if not local or "%" in reference:
        raise ValueError(f"$ref: {reference!r:.80} points outside the schema; only #/... is accepted")
    place: Any = whole
    for key in reference.removeprefix("#").split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        index = int(name) if isinstance(place, list) and name.isascii() and name.isdecimal() else name
        try:
            place = place[index]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"$ref: {reference:.80} does not exist in the schema") from None
    if id(place) not in places:
        raise ValueError(f"$ref: {reference:.80} is no subschema; refer to one, such as one in $defs")


def check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or len(pattern) > PATTERN_LENGTH:
        raise ValueError(f"pattern: must be a text of at most {PATTERN_LENGTH} characters")
    counts = [int(text) for pair in REPEAT.findall(pattern) for text in pair if text]
    if max(counts, default=0) > MOST_COUNT:
        raise ValueError(f"pattern: a repeat count is above {MOST_COUNT}; lower it")
    if (size := written_out(pattern)) > MOST_REPEATS:
        raise ValueError(f"pattern: its nested repeat counts make {size:,} characters; lower them")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern: {pattern:.60}: {error}") from None


def written_out(pattern: str) -> int:
    """The characters of a pattern in which every repeat count is replaced by so many copies."""
    groups: list[list[int]] = [[]]
    for atom in ATOM.findall(pattern):
        repeat = REPEAT.fullmatch(atom)
        if atom == "(":
            groups.append([])
        elif atom == ")" and len(groups) > 1:
            groups[-2].append(sum(groups.pop()))
        elif repeat and groups[-1]:
            groups[-1][-1] *= max([1, *(int(count) for count in repeat.groups() if count)])
        else:
            groups[-1].append(1)
    return sum(map(sum, groups))
