"""Validate a model's answer by a schema, in the sandbox: a pattern can make a regular expression run for hours."""

import json
from typing import Any

from compress.sandbox.layers import Limits
from compress.sandbox.run import run
from compress.serve.schema import strict_json

LIMITS = Limits(seconds=10.0, cpu_seconds=5, output=4_000_000)
IMPORTS = ("jsonschema", "jsonschema_specifications", "referencing")
FUNCTION = "compress.serve.schema.validate:validate_bytes"
MOST_ERRORS, ANSWER_LENGTH = 5, 1_000_000


def validate(schema: dict[str, Any] | None, answer: str) -> dict[str, Any]:
    """Whether an answer is valid by a schema, as {"valid", "errors"}. Raises SandboxError.

    An answer that is JSON also has its `value`. Without a schema, every JSON value is valid.
    """
    if len(answer) > ANSWER_LENGTH:
        return {"valid": False, "errors": [f"the answer has more than {ANSWER_LENGTH:,} characters"]}
    result = run(FUNCTION, json.dumps({"schema": schema, "answer": answer}).encode(), LIMITS, IMPORTS)
    if result.status != "returned":
        return {"valid": False, "errors": [f"the answer could not be validated: {result.detail or result.status}"]}
    row: dict[str, Any] = json.loads(result.output)
    return row


def validate_bytes(data: bytes) -> bytes:
    """`validate`, in the contained process."""
    request = json.loads(data)
    try:
        value = strict_json.loads(request["answer"])
    except ValueError as error:
        return json.dumps({"valid": False, "errors": [f"not JSON: {error}"]}).encode()
    errors = faults(request["schema"], value) if request["schema"] is not None else []
    return json.dumps({"valid": not errors, "value": value, "errors": errors}).encode()


def faults(schema: dict[str, Any], value: Any) -> list[str]:
    """The first faults of a value. Each begins with the path of the wrong part."""
    from jsonschema import Draft202012Validator
    from jsonschema_specifications import REGISTRY

    validator = Draft202012Validator(schema, registry=REGISTRY)  # this registry fetches nothing
    lines = []
    for error in validator.iter_errors(value):
        place = "/".join(map(str, error.absolute_path))
        lines.append(f"{place or 'the answer'}: {error.message:.200}")
        if len(lines) == MOST_ERRORS:
            break
    return lines
