"""What the validator has compared, in sentences: a check that compares little must not look like one that compares all.

Each sentence states how many linears, tensors or keys were compared, and how many of them have an error.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from compress.checkpoint.check.candidate import Candidate
from compress.checkpoint.check.prompt_files import GENERATION, SETTINGS, TOKENIZER
from compress.checkpoint.record import DIGESTS
from compress.core.errors import QCompressError

Row = dict[str, Any]


def comparisons(candidate: Candidate, rows: Sequence[Row]) -> Iterator[str]:
    """One sentence per comparison: with the digests, with the source, and between the prompt files."""
    yield with_digests(candidate, rows)
    yield from with_source(candidate, rows)
    files = candidate.prompt
    names = [name for name in (TOKENIZER, SETTINGS, GENERATION) if files.has(name)]
    try:
        names += ["the chat template"] if files.template else []
    except QCompressError:
        names += ["the chat template"]
    if names:
        broken = count_errors(rows, ("P1", "P2", "P3", "P4", "P5", "P6"), "key", "file")
        verdict = f"{broken} errors" if broken else "they agree"
        yield f"{', '.join(names)} and config.json with one another: {verdict}"


def with_digests(candidate: Candidate, rows: Sequence[Row]) -> str:
    """The sentence about the digests that were stored when the checkpoint was written."""
    try:
        digests = candidate.digests
    except QCompressError:
        digests = None
    if digests is None:
        return f"nothing with digests: no {DIGESTS}, so changes cannot be detected"
    broken = count_errors(rows, ("D1", "D2", "D3"), "tensor", "key", "file")
    counts = [f"{len(digests[part])} {noun}" for part, noun in PARTS.items() if part in digests]
    return f"{', '.join(counts)} with their digests: {differ(broken)}"


PARTS = {"tensors": "tensors", "config": "keys of config.json", "files": "files"}


def with_source(candidate: Candidate, rows: Sequence[Row]) -> Iterator[str]:
    """The sentences about the weights and config.json of the source."""
    source = candidate.compared_source
    if candidate.source is not None and source is None:
        yield f"no weights with {candidate.source}: they were trained since"
    elif source is None:
        yield "nothing with a source checkpoint; name one with --source"
    else:
        linears = len(candidate.packed)
        if linears:
            broken = count_errors(rows, ("T12", "T14"), "tensor")
            yield f"{linears} packed linears with {source}: {differ(broken)}"
        others = [name for name in candidate.checkpoint.tensors if name in source.tensors]
        broken = count_errors(rows, ("T13", "C10"), "tensor", "key")
        yield f"{len(others)} other tensors and config.json with {source}: {differ(broken)}"


def count_errors(rows: Sequence[Row], rules: Sequence[str], *places: str) -> int:
    """The number of different tensors, keys and files with an error of these rules."""
    errors = [row for row in rows if row["rule"] in rules and row["level"] == "error"]
    return len({str(next((row[place] for place in places if place in row), "")) for row in errors})


def differ(count: int) -> str:
    return f"{count} differ" if count else "all match"
