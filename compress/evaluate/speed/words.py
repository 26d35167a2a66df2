"""Words that the terminal and the report share: what a measured row means, and what a prediction assumes."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Every error and remark of the measured rows, each with the names of its checkpoints."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        for text in filter(None, (row.get("error"), row.get("note"))):
            texts.setdefault(str(text), []).append(row["name"])
    return texts


def request_text(row: Row) -> str:
    """The request that a predicted row assumes, and the upper limit of its largest batch."""
    length = f"requests of {row['prompt_tokens']:,} prompt tokens and {row['new_tokens']:,} new tokens"
    return f"{length}, at most {row['max_requests']:,} at once (vLLM's default)"
