"""Tiny checkpoints of every format, rounded to nearest, to be copied and wounded."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from compress.checkpoint.formats import FORMATS, model_dtype, packed_config
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import Scheme
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.model.blocks import linear_shapes
from compress.quantize.rtn import rtn

GROUP_SIZE = 32
Good = Callable[[str, str], Path]


def round_checkpoint(source: Path, out: Path, format_name: str, *, sym: bool) -> Path:
    """The checkpoint at `source` with its linears rounded, in one of our formats."""
    checkpoint, row = Checkpoint(source), FORMATS[format_name]
    scheme = Scheme(4, GROUP_SIZE, sym, model_dtype(checkpoint.config))
    linears = linear_shapes(checkpoint.config)
    pairs = []
    for name in checkpoint.tensors:
        tensor, module = checkpoint.tensor(name), name.removesuffix(".weight")
        if module in linears:
            weight = rtn(tensor, group_size=GROUP_SIZE, sym=sym, dtype=scheme.dtype)
            parts = {f"{module}.{suffix}": part for suffix, part in row.save(weight, scheme.dtype).items()}
        else:
            parts = {name: tensor}
        pairs += [(TensorSpec(key, part.dtype, tuple(part.shape)), part) for key, part in parts.items()]
    save_checkpoint(
        out, packed_config(checkpoint.config, row, dict.fromkeys(linears, scheme), ["lm_head"]), pairs, source=source
    )
    return out


@pytest.fixture(scope="session")
def good(tiny_llama: Path, tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """good(model, kind): a sound checkpoint; model llama or qwen2, kind plain, awq, gptq, ct or ct-asym."""
    folder = tmp_path_factory.mktemp("good")

    @cache
    def make(model: str, kind: str) -> Path:
        source = {"llama": tiny_llama, "qwen2": tiny_qwen2}[model]
        if kind == "plain":
            return source
        name = "compressed-tensors" if kind.startswith("ct") else kind
        return round_checkpoint(source, folder / f"{model}-{kind}", name, sym=kind in ("gptq", "ct"))

    return make
