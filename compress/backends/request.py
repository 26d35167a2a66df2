"""What crosses the border to a backend: request.json and windows.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compress.core.atomic import file_errors
from compress.core.backend_config import BackendConfig

SCHEMA = 1
Row = dict[str, Any]


def write_request(folder: Path, model: Path, config: BackendConfig, ids: torch.Tensor, facts: Row) -> Path:
    """Write the request and the windows (n_samples, seq_len) to the work folder. Returns the path of the request.

    All paths in it are absolute. `facts` is added: packages, device, threads, and what only some drivers need.
    """
    file = folder / "request.json"
    with file_errors(file):
        save_file({"windows": ids.to(torch.int64).contiguous()}, folder / "windows.safetensors")
        file.write_text(json.dumps(request(folder, model, config) | facts, indent=1) + "\n")
    return file


def request(folder: Path, model: Path, config: BackendConfig) -> Row:
    """What the request has for every driver."""
    places = {
        "model": model,
        "windows": folder / "windows.safetensors",
        "out": folder / "checkpoint",
        "progress": folder / "progress.jsonl",
        "result": folder / "result.json",
        "scratch": folder / "scratch",
    }
    return {
        "schema": SCHEMA,
        **{name: str(path.absolute()) for name, path in places.items()},
        "method": config.method,
        "format": config.format,
        "bits": 4,
        "group_size": config.group_size,
        "sym": config.sym,
        "seed": config.seed,
    }
