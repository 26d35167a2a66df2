"""What made a checkpoint: `qcompress.json` beside the weights, and digests that tell whether inputs changed."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compress.checkpoint.read import read_json, weight_files

RECORD = "qcompress.json"


def record_text(command: str, settings: dict[str, Any], **parts: Any) -> str:
    """The record as JSON text: the command, its settings, the versions that ran, and whatever `parts` tell."""
    versions = {name: version(name) for name in ("qcompress", "torch", "transformers", "safetensors")}
    versions["python"] = platform.python_version()
    value = {"command": command, "settings": settings, **parts, "versions": versions}
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def read_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint, {} when it has none."""
    file = Path(path) / RECORD
    return read_json(file) if file.is_file() else {}


def digest(path: Path) -> str:
    """sha256 over config.json and every weight file of a checkpoint, or over one file."""
    path = Path(path)
    files = [path / "config.json", *weight_files(path)] if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"
