"""The rules of a safetensors header, as strict as the safetensors library: what it refuses is refused here.

The data must be covered exactly once: the first tensor begins at byte 0, each next one where the last ended.
Source: `SafeTensors::read_metadata` and `Metadata::validate`, https://github.com/huggingface/safetensors.
`read.py` reads the file; only this module decides whether a header is valid.
"""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

from compress.core.errors import QCompressError

METADATA = "__metadata__"
ENTRY_KEYS = ("dtype", "shape", "data_offsets")
LARGEST = 2**64 - 1  # the library reads sizes as 64-bit integers


def parse_header(file: Path, text: bytes) -> dict[str, Any]:
    """The entries of a header by tensor name, without __metadata__.

    Raises QCompressError if the text is not strict JSON, names a tensor twice, or has metadata that is not text.
    """
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=single_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:100]
        raise QCompressError(f"{file}: the header is not valid JSON ({reason}); fetch the file again") from None
    if not isinstance(header, dict):
        kind = type(header).__name__
        raise QCompressError(f"{file}: the header is a JSON {kind}, not an object; fetch the file again")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise QCompressError(f"{file}: {METADATA} must map names to text; save the file again with safetensors")
    for name in (*header, *metadata, *metadata.values()):
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise QCompressError(f"{file}: {name!r} is not valid Unicode; fetch the file again")
    return header


def single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The JSON object made of key-value `pairs`. Raises ValueError if a key is repeated."""
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{repeated[:80]} is listed twice")
    return value


def refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def is_entry(entry: Any) -> bool:
    """Whether a header entry has a dtype, a shape of whole numbers, and two offsets.

    The library also reads an entry that is a list, and objects under unknown keys. No program writes either.
    """
    if not isinstance(entry, dict) or not all(key in entry for key in ENTRY_KEYS):
        return False
    if any(isinstance(value, list | dict) for key, value in entry.items() if key not in ENTRY_KEYS):
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    return (
        isinstance(entry["dtype"], str)
        and isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(number) is int and 0 <= number <= LARGEST for number in (*shape, *offsets))
        and all(count <= LARGEST for count in accumulate(shape, mul))
    )


def check_contiguous(file: Path, ranges: Iterable[tuple[int, int, str]], data_bytes: int) -> None:
    """Check that the (start, end, name) of all tensors cover `data_bytes` bytes without overlap or gap.

    Raises QCompressError with the first tensor that does not begin where the one before it ends.
    """
    position = 0
    for start, end, name in sorted(ranges):
        if start != position or end < start:
            what = "overlaps the tensor before it" if start < position else "leaves a gap before it"
            raise QCompressError(
                f"{file}: {name} begins at byte {start} of the data, not {position}: it {what}; fetch the file again"
            )
        position = end
    if position != data_bytes:
        raise QCompressError(
            f"{file}: {data_bytes} bytes of data, but the header lists {position}; fetch the file again"
        )
