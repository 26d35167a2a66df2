"""Random damage to small files, from seeded random numbers: the table behind `fuzz.py` and its test.

VALUES damage parsed JSON or YAML in place, BYTES damage the bytes of any file.
"""

import copy
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 127, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "a", "x" * 1000, "\u2028", "../../etc/passwd", "auto", "true", "\x00", "{{ 1/0 }}", "2024-13-45", "1e308"),
    *([], {}, [[]], [None], {"": {}}, [1, 2, 3], {"a": 1}, ["a"], [0] * 100, [[1], [2]]),
)
PIECES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"[" * 300,
    b"{",
    b"}",
    b'"',
    b"\n",
    b"\\ud800",
    b"9" * 400,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value inside `value`."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        found += [(part, key) for key in keys]
        waiting += [part[key] for key in keys]
    return found


def replace_value(rng: random.Random, value: Any) -> None:
    container, key = rng.choice(places(value))
    container[key] = copy.deepcopy(rng.choice(ODD))


def scale_number(rng: random.Random, value: Any) -> None:
    numbers = [(c, k) for c, k in places(value) if isinstance(c[k], int | float) and not isinstance(c[k], bool)]
    container, key = rng.choice(numbers or places(value))
    if numbers:
        container[key] *= rng.choice((-1, 0, 0.5, 2, 3, 1000, 10**9))


def remove_value(rng: random.Random, value: Any) -> None:
    container, key = rng.choice(places(value))
    del container[key]


def rename_key(rng: random.Random, value: Any) -> None:
    container, key = rng.choice([(c, k) for c, k in places(value) if isinstance(c, dict)] or [({"a": 1}, "a")])
    name = str(key)
    container[rng.choice((f"{name}x", name[:-1], name.upper(), "", "__metadata__", "model_type"))] = container.pop(key)


def swap_values(rng: random.Random, value: Any) -> None:
    (one, first), (two, second) = (rng.choice(places(value)) for _ in range(2))
    one[first], two[second] = copy.deepcopy(two[second]), copy.deepcopy(one[first])


def nest_value(rng: random.Random, value: Any) -> None:
    container, key = rng.choice(places(value))
    for _ in range(rng.choice((1, 3, 200))):
        container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}


def to_text(rng: random.Random, value: Any) -> None:
    container, key = rng.choice(places(value))
    container[key] = str(container[key])


def flip_byte(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut_end(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def cut_piece(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 8, 100))]


def repeat_piece(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice((1, 8, 100))] * rng.choice((1, 2, 50))


def insert_piece(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice(PIECES)


def random_bytes(rng: random.Random, data: bytearray) -> None:
    data[:] = rng.randbytes(rng.choice((0, 1, 7, 100)))


VALUES: tuple[Callable[[random.Random, Any], None], ...] = (
    *(replace_value, replace_value, scale_number, remove_value, rename_key, swap_values, nest_value, to_text),
)
BYTES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(flip_byte, cut_end, cut_piece, repeat_piece, insert_piece, random_bytes),
)
