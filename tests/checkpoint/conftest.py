"""Tiny checkpoints of every format, rounded to nearest, to be copied and damaged."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from compress.checkpoint.formats import FORMATS, model_dtype, packed_config
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import Schemes
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.core.grid import Scheme
from compress.model.shapes import linear_shapes
from compress.quantize.methods.rtn import rtn

GROUP_SIZE = 32
Good = Callable[[str, str], Path]


def round_checkpoint(source: Path, out: Path, format_name: str, schemes: Schemes) -> Path:
    """The checkpoint at `source` with the modules of `schemes` rounded, in one of our formats."""
    checkpoint, row = Checkpoint(source), FORMATS[format_name]
    pairs = []
    for name in checkpoint.tensors:
        tensor, module = checkpoint.tensor(name), name.removesuffix(".weight")
        parts = {name: tensor}
        if module in schemes:
            scheme = schemes[module]
            weight = rtn(tensor, scheme)
            parts = {f"{module}.{suffix}": part for suffix, part in row.save(weight, scheme.dtype.torch).items()}
        pairs += [(TensorSpec.of(key, part), part) for key, part in parts.items()]
    ignore = [] if "lm_head" in schemes else ["lm_head"]
    save_checkpoint(out, packed_config(checkpoint.config, row, schemes, ignore), pairs, source=source)
    return out


def schemes_of(source: Path, kind: str) -> Schemes:
    """Every linear in 4 bits. Kinds that end in "-ends" have q, k and v of block 1 in 8 bits and a packed head.

    "ct-ends" also has an embedding in 8 bits.
    """
    config = Checkpoint(source).config
    four = Scheme(4, GROUP_SIZE, kind in ("gptq", "ct", "gptq-ends", "ct-ends"), model_dtype(config))
    schemes = dict.fromkeys(linear_shapes(config), four)
    if kind.endswith("-ends"):
        eight = replace(four, bits=8)
        schemes |= {f"model.layers.1.self_attn.{letter}_proj": eight for letter in "qkv"} | {"lm_head": four}
        schemes |= {"model.embed_tokens": eight} if kind == "ct-ends" else {}
    return schemes


@pytest.fixture(scope="session")
def good(tiny_llama: Path, tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """good(model, kind): a correct checkpoint. `model` is llama or qwen2; `kind` is plain, awq, gptq, ct or ct-asym,
    for qwen2 also gptq-ends and ct-ends.
    """
    folder = tmp_path_factory.mktemp("good")

    @cache
    def make(model: str, kind: str) -> Path:
        source = {"llama": tiny_llama, "qwen2": tiny_qwen2}[model]
        if kind == "plain":
            return source
        name = "compressed-tensors" if kind.startswith("ct") else kind.removesuffix("-ends")
        return round_checkpoint(source, folder / f"{model}-{kind}", name, schemes_of(source, kind))

    return make
