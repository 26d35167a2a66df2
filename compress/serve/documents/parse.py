"""Read an uploaded file in the sandbox, within limits of time and memory. Nothing is written to a disk."""

import json
from typing import Any

from compress.sandbox.layers import Limits
from compress.sandbox.run import Result, run
from compress.serve.documents.content import DocumentError
from compress.serve.documents.read import needed_imports

LIMITS = Limits(seconds=15.0, cpu_seconds=12, memory=512 * 1024 * 1024, output=16_000_000)
FUNCTION = "compress.serve.documents.read:read_bytes"
REASONS = {
    "timeout": f"reading it takes more than {LIMITS.seconds:g} s",
    "cpu": f"reading it takes more than {LIMITS.cpu_seconds} s",
    "memory": f"reading it takes more than {LIMITS.memory // 2**20} MB of memory",
    "killed": f"reading it takes more than {LIMITS.memory // 2**20} MB of memory, or the reader crashed",
    "output": "its text is too long",
    "refused": "reading it needs something that is forbidden",
}


def parse(data: bytes) -> dict[str, Any]:
    """{"kind", "text", "notes", "pages"} of a file. Raises DocumentError, and SandboxError if nothing can be read."""
    if not data:
        raise DocumentError("the file is empty")
    result = run(FUNCTION, data, LIMITS, needed_imports(data))
    if result.status != "returned":
        raise DocumentError(reason(result))
    row: dict[str, Any] = json.loads(result.output)
    if "error" in row:
        raise DocumentError(row["error"])
    return row | {"text": encodable(row["text"]), "notes": [*map(encodable, row["notes"])]}


def encodable(text: str) -> str:
    """The text with a question mark for each half of a character (a lone surrogate), which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def reason(result: Result) -> str:
    return REASONS.get(result.status, f"the file is damaged: {result.detail[:120]}")
