"""Schemas beyond the limits are refused before the engine compiles them."""

import pytest

from compress.serve.schema.rules import check_schema


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def counted(key, *counts):
    """Arrays within arrays, each with a count."""
    schema = {"type": "string"}
    for count in counts:
        schema = {"type": "array", "items": schema, key: count}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"name": {"type": "string", "maxLength": 100}}, "required": ["name"]},
        {"$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "array", "items": {"$ref": "#"}},
        {"properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}, "maxItems": {"type": "integer"}}},
        {"enum": [{"$ref": "http://elsewhere/"}]},
        nested(10),
        counted("maxItems", 100, 100),
        {"type": ["string", "null"], "enum": ["a"] * 500, "pattern": r"^\d{4}-(\d{2}){1,2}[)]{3}$"},
        {"anyOf": [{"type": "string"}], "items": {"$ref": "#/anyOf/0"}},
    ],
    ids=str,
)
def test_ordinary_schemas_are_accepted(schema):
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "JSON object"),
        ({"type": "strin"}, "strin"),
        (nested(400), "levels deep"),
        ({"description": "x" * 40_000}, "bytes"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "outside"),
        ({"$ref": "file:///etc/passwd"}, "outside"),
        ({"properties": {"a": {"$dynamicRef": "other.json#x"}}}, "outside"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"properties": {"a": {"$id": "http://elsewhere/"}}}, r"\$id"),
        ({"type": "array", "items": {"maxItems": 100_000_000}}, "maxItems"),
        ({"type": "string", "minLength": 10**9}, "minLength"),
        ({"pattern": "a{1,100000}"}, "repeat count"),
        ({"pattern": "(" * 150}, "pattern"),
        ({"pattern": "a" * 300}, "pattern"),
        ({"patternProperties": {"b{2000}": {}}}, "repeat count"),
        ({"pattern": "((a{900}){900}){900}"}, "repeat counts"),
        ({"pattern": r"((\\)[)(]x{900}){900}"}, "repeat counts"),
        (counted("minItems", 900, 900, 900), "minItems"),
        (counted("maxItems", 400, 400), "maxItems"),
        ({"type": ["string"] * 8}, "type"),
        ({"type": ["string"] * 3000}, "a list"),
        ({"enum": [1] * 501}, "a list"),
        ({"required": ["a"] * 501}, "a list"),
        ({"properties": {str(number): {} for number in range(2500)}}, "subschemas"),
        ({"const": 1e999}, "number"),
        ({"maxItems": 10**400}, "number"),
        ({"enum": [-(10**400)]}, "number"),
        ({"enum": [{"type": "string"}], "properties": {"a": {"$ref": "#/enum/0"}}}, "no subschema"),
        ({"const": {"maxItems": 10**9}, "items": {"$ref": "#/const"}}, "no subschema"),
        ({"properties": {"a": {"$ref": "#/properties"}}}, "no subschema"),
        ({"$defs": {"a": {}}, "$ref": "#a"}, "outside"),
        ({"$defs": {"a": {}}, "$ref": "#/%24defs/a"}, "outside"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_schemas_beyond_the_limits_are_refused_with_the_reason(schema, reason):
    with pytest.raises(ValueError, match=reason):
        check_schema(schema)
