"""A copy of a tiny checkpoint to be damaged, and the check that the door refuses it in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.load import open_causal_lm, open_for_text
from compress.core.errors import QCompressError

Edit = Callable[..., None]


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tied llama of 2 blocks, free to change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def untied(tiny_qwen2: Path, tmp_path: Path) -> Path:
    """A qwen2 of 2 blocks with a head of its own, free to change."""
    return Path(shutil.copytree(tiny_qwen2, tmp_path / "untied"))


def edit_config(path: Path, **values: Any) -> None:
    """Set keys of config.json; the value `...` removes a key."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(path: Path, file: str = "model.safetensors", **tensors: torch.Tensor | None) -> None:
    """Add or replace tensors, with "__" for "." in their names; None removes one."""
    stored = load_file(path / file) if (path / file).exists() else {}
    stored |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, path / file, metadata={"format": "pt"})


@pytest.fixture
def refused() -> Callable[..., str]:
    """refused(path, words, text=False): the error of the door, one line with the path and all `words`."""

    def check(path: Path, *words: str, text: bool = False) -> str:
        with pytest.raises(QCompressError) as caught:
            (open_for_text if text else open_causal_lm)(path)
        if text:
            with pytest.raises(QCompressError):  # what cannot be loaded is not waved through either
                open_causal_lm(path).check_tokenizer()
        message = caught.value.message
        assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
        assert caught.value.exit_code == 1 and all(word in message for word in words), message
        return message

    return check
