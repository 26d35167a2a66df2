"""What the evaluation tests share: windows of random ids, quantized twins, and damaged or widened copies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from calibration.windows import Windows
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.config import QuantizeConfig
from compress.quantize.job import quantize_checkpoint

Change = Callable[[dict, dict], None]


def random_windows(n_samples: int = 5, seq_len: int = 24, vocabulary: int = 128, seed: int = 0) -> Windows:
    """Uniform ids; two tokens in three count, as in a conversation."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (n_samples, seq_len), generator=generator)
    mask = torch.rand(n_samples, seq_len, generator=generator) < 0.67
    return Windows(ids, mask, {"start_token": None, "seed": seed, "sources": []})


def changed_copy(source: Path, out: Path, change: Change) -> Path:
    """A copy of a checkpoint after `change(config, tensors)`."""
    checkpoint = Checkpoint(source)
    config, tensors = dict(checkpoint.config), {name: checkpoint.tensor(name) for name in checkpoint.tensors}
    change(config, tensors)
    pairs = [(TensorSpec(name, tensor.dtype, tuple(tensor.shape)), tensor) for name, tensor in tensors.items()]
    save_checkpoint(out, config, pairs, source=source)
    return out


@pytest.fixture
def windows() -> Windows:
    return random_windows()


@pytest.fixture
def make_windows() -> Callable[..., Windows]:
    return random_windows


@pytest.fixture
def change_copy() -> Callable[[Path, Path, Change], Path]:
    return changed_copy


@pytest.fixture(scope="session")
def quantized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tiny_llama rounded to 4 bits, by format."""
    folder = tmp_path_factory.mktemp("rounded")
    paths = {name: folder / name for name in ("awq", "gptq", "compressed-tensors")}
    for name, path in paths.items():
        quantize_checkpoint(tiny_llama, path, QuantizeConfig(method="rtn", format=name, group_size=32))
    return paths


@pytest.fixture
def narrow(tiny_llama: Path, tmp_path: Path) -> Path:
    """A random llama with half the width of tiny_llama, and its tokenizer."""
    generator = torch.Generator().manual_seed(3)

    def change(config: dict, tensors: dict) -> None:
        config |= {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
        for name, tensor in tensors.items():
            halves = [32 if size == 64 else 16 if size == 32 else size for size in tensor.shape]
            tensors[name] = (torch.randn(halves, generator=generator) * 0.1 + ("norm" in name)).half()

    return changed_copy(tiny_llama, tmp_path / "narrow", change)


@pytest.fixture
def padded(tiny_llama: Path, tmp_path: Path) -> Path:
    """tiny_llama with eight more rows of vocabulary that no token uses, and that are likely: they must not count."""

    def change(config: dict, tensors: dict) -> None:
        config["vocab_size"] = 136
        table = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([table, 3 * table[:8]])

    return changed_copy(tiny_llama, tmp_path / "padded", change)


@pytest.fixture
def copy_with(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint with one JSON file changed: copy_with(source, "qcompress.json", change)."""

    def copy(source: Path, name: str, change: Callable[[dict], None], out: str = "copy") -> Path:
        target = tmp_path / out
        shutil.copytree(source, target)
        file = target / name
        value = json.loads(file.read_text()) if file.is_file() else {}
        change(value)
        file.write_text(json.dumps(value))
        return target

    return copy
