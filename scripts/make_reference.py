"""Move every weight of a model off its 4-bit grid: python scripts/make_reference.py build/smollm2 -o build/reference

SmolLM2 and Qwen2.5-Coder come out of 4-bit .gguf files here: in blocks of 32, their weights take 16 values. A quantizer
with blocks of 32 finds that grid again, and its error says nothing about other models. This script gives each input
channel of every linear a random factor. The norm or linear before it gets the inverse, so the model computes the same
up to rounding to 16 bits, but the 32 weights of a block have 32 different factors and lie on no common grid:

    q, k, v     input_layernorm             o      v, one factor for all query heads that read it
    gate, up    post_attention_layernorm    down   up

Same input, same bytes. The output has the shares of weights that moved by more than 0.1 and 0.25 of a step, and the
perplexity of both models and their KL on each --eval-text.
"""

import sys
from pathlib import Path
from typing import Any

import click
import torch
from script_options import out_option
from torch import Tensor

from compress.checkpoint.load import open_for_text
from compress.checkpoint.model_card import origin
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.record import record_text
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.errors import QCompressError
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows

Row = dict[str, Any]
Tensors = dict[str, Tensor]
FEEDERS = {  # what computes the inputs -> the linears that read them, in one block
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
SMALLEST, LARGEST = 0.1, 0.3  # by how much a factor differs from 1
BLOCK, LEVELS = 32, 15  # weights of a block of the .gguf file, and steps between its 16 levels
MOVED = (0.1, 0.25)  # of a step


def random_factors(count: int, generator: torch.Generator) -> Tensor:
    """Factors (count,) float64 of 0.7 to 0.9 or 1.1 to 1.3."""
    size = SMALLEST + (LARGEST - SMALLEST) * torch.rand(count, generator=generator, dtype=torch.float64)
    return 1 + size * (2 * torch.randint(0, 2, (count,), generator=generator) - 1)


def rescale_block(tensors: Tensors, block: str, head_dim: int, generator: torch.Generator) -> None:
    """Give the input channels of a block's linears new factors, and what feeds them the inverse. In float64."""
    for feeder, readers in FEEDERS.items():
        weight = tensors[f"{block}{feeder}.weight"]
        factors = random_factors(len(weight), generator)
        for name in ("weight", "bias"):
            if (tensor := tensors.get(f"{block}{feeder}.{name}")) is not None:
                tensor /= factors.reshape(-1, *[1] * (tensor.ndim - 1))
        for reader in readers:
            matrix = tensors[f"{block}{reader}.weight"]
            copies = matrix.shape[1] // len(factors)  # of each value head, for the query heads that read it
            matrix *= factors.reshape(-1, 1, head_dim).expand(-1, copies, -1).flatten() if copies > 1 else factors


def rescale(checkpoint: Checkpoint, seed: int) -> Tensors:
    """All tensors of the new model, in float64. Raises QCompressError if the model has other linears."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: checkpoint.tensor(name).double() for name in checkpoint.tensors}
    config = checkpoint.config
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for index in range(config["num_hidden_layers"]):
        block = f"model.layers.{index}."
        linears = {name.removeprefix(block).removesuffix(".weight") for name in tensors if name.startswith(block)}
        if missing := {*FEEDERS, *(name for names in FEEDERS.values() for name in names)} - linears:
            raise QCompressError(f"{checkpoint}: {block}{min(missing)} is missing; give a llama or qwen2 model")
        rescale_block(tensors, block, head_dim, generator)
    return tensors


def moved_shares(checkpoint: Checkpoint, tensors: Tensors) -> Row:
    """The shares of the linears' weights that moved by more than each of MOVED, in steps of their 4-bit grid."""
    counts, total = dict.fromkeys(MOVED, 0), 0
    for name, info in checkpoint.tensors.items():
        if ".layers." in name and len(info.shape) == 2:
            source = checkpoint.tensor(name).float().unflatten(1, (-1, BLOCK))
            low, high = source.aminmax(dim=2, keepdim=True)
            moved = (tensors[name].to(info.dtype.torch).float().unflatten(1, (-1, BLOCK)) - source).abs()
            total += source.numel()
            for share in MOVED:
                counts[share] += int((moved > share * (high - low) / LEVELS).sum())
    return {f"moved_by_{share}_steps": count / total for share, count in counts.items()}


def drift(source: Path, out: Path, text: str, samples: int) -> Row:
    """Perplexity of both models, and the KL between them, on held-out windows of one text."""
    windows = evaluation_windows(source, [out], text, n_samples=samples, seq_len=512)
    before, after = compare_rows(source, [out], windows, report=report)
    return {
        "text": Path(text).name,
        "perplexity_before": before["perplexity"],
        "perplexity": after["perplexity"],
        "kl": after["kl"],
    }


@click.command(help=__doc__)
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@out_option("build/reference", "Folder for the new model.")
@click.option("--eval-text", "texts", multiple=True, default=("heldout",), show_default=True, help="Repeatable.")
@click.option("--eval-samples", type=click.IntRange(1), default=12, show_default=True, help="Windows per --eval-text.")
@click.option("--seed", default=0, show_default=True, help="Seed of the factors.")
@json_option
def main(source: Path, out: Path, texts: tuple[str, ...], eval_samples: int, seed: int, as_json: bool) -> None:
    checkpoint = open_for_text(source)
    tensors = rescale(checkpoint, seed)
    moved = moved_shares(checkpoint, tensors)
    pairs = [(TensorSpec(name, one.dtype, one.shape), tensors[name]) for name, one in checkpoint.tensors.items()]
    record = record_text("make-reference", {"seed": seed}, source=origin(checkpoint), moved=moved)
    save_checkpoint(out, checkpoint.config, pairs, source=checkpoint.path, extra={RECORD: record})
    emit([{"out": str(out), **moved, **drift(source, out, text, eval_samples)} for text in texts], as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
