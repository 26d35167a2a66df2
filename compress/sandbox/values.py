"""Send plain values between two contained processes: the length of a message, then JSON.

Reading a message creates values of built-in types only, never of a subclass.

A value is None, a bool, int, float, complex, str, bytes, list, tuple, dict, set or frozenset, or an iterator of values,
which is read to its end. An instance of a subclass is sent as a value of its base class.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

Tree = Any
LARGEST = 1024 * 1024  # bytes of one message
LONGEST = 100_000  # items of an iterator
EXACT = 2**53  # larger integers are sent in hexadecimal, which has no limit of digits


class BadMessageError(Exception):
    """The other process sent something that is not a message of plain values."""


def send(descriptor: int, message: dict[str, Tree]) -> None:
    """Write one message. Raises ValueError if it has more than LARGEST bytes."""
    text = json.dumps(message).encode()
    if len(text) > LARGEST:
        raise ValueError(f"the value has {len(text):,} bytes, more than {LARGEST:,}")
    rest = memoryview(struct.pack(">I", len(text)) + text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> dict[str, Tree]:
    """The next message. Raises EOFError if the other process has ended, BadMessageError if the message is invalid."""
    (length,) = struct.unpack(">I", _read(descriptor, 4))
    if length > LARGEST:
        raise BadMessageError(f"the message has {length:,} bytes, more than {LARGEST:,}")
    try:
        message = json.loads(_read(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"the message is not JSON: {error}") from None
    if type(message) is not dict:
        raise BadMessageError("the message is not a JSON object")
    return message


def _read(descriptor: int, length: int) -> bytes:
    pieces: list[bytes] = []
    while length:
        piece = os.read(descriptor, length)
        if not piece:
            raise EOFError
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def encode(value: Any) -> Tree:
    """Encode a value as JSON types. Raises TypeError if it is not plain, ValueError if an iterator is too long."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if abs(number) < EXACT else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value) if math.isfinite(value) else {"float": float.hex(value)}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {type_name(value): value.hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    if isinstance(value, list):
        return [encode(item) for item in list.__iter__(value)]
    return _encode_items(value)


def _encode_items(value: Any) -> Tree:
    """Encode a tuple, a set or a frozenset. Any other iterable is encoded as an iterator."""
    if isinstance(value, tuple | set | frozenset):
        return {type_name(value): [encode(item) for item in value]}
    if not isinstance(value, Iterable) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is not a plain value")
    items = list(islice(value, LONGEST + 1))
    if len(items) > LONGEST:
        raise ValueError(f"the iterator has more than {LONGEST:,} items")
    return {"iterator": [encode(item) for item in items]}


def type_name(value: Any) -> str:
    """The name of the value's nearest built-in type: "tuple" for a named tuple."""
    return next(kind.__name__ for kind in type(value).__mro__ if kind.__module__ == "builtins")


READERS: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(decode, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "dict": lambda pairs: {decode(key): decode(item) for key, item in pairs},
    "tuple": lambda items: tuple(map(decode, items)),
    "set": lambda items: set(map(decode, items)),
    "frozenset": lambda items: frozenset(map(decode, items)),
    "iterator": lambda items: iter(list(map(decode, items))),
}


def decode(tree: Tree) -> Any:
    """The value that `encode` turned into `tree`. Raises BadMessageError if `encode` cannot have made this tree."""
    if type(tree) is list:
        return [decode(item) for item in tree]
    if type(tree) is not dict:
        return tree
    try:
        ((kind, content),) = tree.items()
        return READERS[kind](content)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BadMessageError(f"the message holds no plain value: {error}") from None


def decode_all(trees: Sequence[Tree]) -> list[Any]:
    """Decode a list of trees. Raises BadMessageError if `trees` is not a list or a tree is invalid."""
    if type(trees) is not list:
        raise BadMessageError("the message holds no list of values")
    return [decode(tree) for tree in trees]
