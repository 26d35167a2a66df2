"""Answers are validated in the sandbox, whatever the schema does to a regular expression."""

import pytest

from compress.serve.schema.validate import validate

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_a_valid_answer_has_its_value():
    assert validate(SCHEMA, '{"age": 3}') == {"valid": True, "value": {"age": 3}, "errors": []}
    assert validate(None, "[1]")["valid"]


@pytest.mark.parametrize("answer", ["", "{", '{"age": NaN}', "Sure! {}", "[" * 100_000], ids=lambda text: text[:10])
def test_text_that_is_no_json_is_not_valid(answer):
    row = validate(SCHEMA, answer)
    assert not row["valid"] and row["errors"]


def test_a_fault_is_named_with_its_place():
    assert validate(SCHEMA, '{"age": "x"}')["errors"] == ["age: 'x' is not of type 'integer'"]


@pytest.mark.slow
def test_a_regular_expression_without_end_is_stopped():
    row = validate({"pattern": "^(a+)+$"}, '"' + "a" * 60 + '!"')
    assert not row["valid"] and "could not be validated" in row["errors"][0]
