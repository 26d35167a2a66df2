"""What the tests of verify and compare share: text, and tiny_llama rounded to 4 bits."""

from pathlib import Path

import pytest

from compress.core.config import QuantizeConfig
from compress.quantize.job import quantize_checkpoint
from tests.checkpoint.conftest import good as good


@pytest.fixture(scope="session")
def rounded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_llama in 4 bits, awq format, by plain rounding."""
    path = tmp_path_factory.mktemp("cli") / "rounded"
    quantize_checkpoint(tiny_llama, path, QuantizeConfig(method="rtn", format="awq", group_size=32))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """About 3,000 characters that no checkpoint was calibrated on."""
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox asks a question; the lazy dog answers it in a few words.\n" * 40)
    return path
