"""Fixtures of the tests on a pretended GPU."""

import importlib
from pathlib import Path

import pytest

from tests.pretend.kernels import OneLaunchKernels

WORDS = "the model answers the question of the user in a few words, and the fox jumps over the lazy dog; "


@pytest.fixture(autouse=True)
def kernels(gpu, monkeypatch):
    """The loops over columns, compiled, as Triton compiles them on a GPU."""
    for method in ("gptq", "refine"):
        module = importlib.import_module(f"compress.quantize.methods.{method}")
        monkeypatch.setattr(module, "triton_kernels", lambda: OneLaunchKernels(gpu))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number}: {WORDS}" for number in range(120)))
    return path


@pytest.fixture
def short(text: Path) -> list[object]:
    return ["--text", text, "--seq-len", 32]
