"""`qcompress.json`, the record of how a checkpoint was made, and `qcompress.sha256.json`, the digests of its content.

There is one digest per tensor and one per key of config.json, computed while they are written. Only content that
changes the model is covered: the model card may be edited, and config.json may be reformatted.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.read import read_json
from compress.core.errors import QCompressError

DIGESTS = "qcompress.sha256.json"


def record_text(command: str, settings: dict[str, Any], **parts: Any) -> str:
    """The record as JSON text: command, settings, further `parts`, and the versions of the packages."""
    versions = {name: version(name) for name in ("qcompress", "torch", "transformers", "safetensors")}
    versions["python"] = platform.python_version()
    value = {"command": command, "settings": settings, **parts, "versions": versions}
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes as stored on disk, hexadecimal."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def config_digests(config: dict[str, Any]) -> dict[str, str]:
    """sha256 of every value of config.json by its key; it does not depend on the formatting of the file."""
    texts = {key: json.dumps(value, sort_keys=True, ensure_ascii=False) for key, value in config.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def digests_text(config: dict[str, Any], tensors: dict[str, str]) -> str:
    """The content of qcompress.sha256.json for this config.json and these tensor digests by name."""
    value = {"config": config_digests(config), "tensors": dict(sorted(tensors.items()))}
    return json.dumps(value, indent=1) + "\n"


def read_digests(path: Path) -> dict[str, dict[str, str]] | None:
    """{"config": ..., "tensors": ...} digests by key and by name; None for a checkpoint without digests."""
    file = Path(path) / DIGESTS
    if not file.is_file():
        return None
    value = read_json(file)
    if not all(isinstance(value.get(part), dict) for part in ("config", "tensors")):
        raise QCompressError(f"{file}: holds no digests of config and tensors; fetch the file again")
    return value
