"""JSON as RFC 8259 defines it: every value that passes can be written again, in UTF-8 and without deep recursion."""

import json
import math
import re
from typing import Any

MOST_DEPTH, MOST_DIGITS = 64, 40
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def loads(data: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError.

    Refused are numbers that a float cannot hold, halves of characters, and more than MOST_DEPTH levels.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_constant=refuse_constant, parse_float=finite, parse_int=whole)
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep") from None
    if nesting(value, MOST_DEPTH) > MOST_DEPTH:
        raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep")
    if SURROGATE.search(text) and not encodable(value):
        raise ValueError("a text has half of a character (a lone surrogate)")
    return value


def nesting(value: Any, most: int) -> int:
    """The depth of nested objects and lists, without recursion. Stops at the first level beyond `most`."""
    level, depth = [value], 0
    while level and depth <= most:
        level = [child for one in level if isinstance(one, dict | list) for child in children(one)]
        depth += bool(level)
    return depth


def children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value


def whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {text[:MOST_DIGITS]}... has more than {MOST_DIGITS} digits")
    return int(text)


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
