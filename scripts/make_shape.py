"""Write a checkpoint with a real model's shapes and random weights: python scripts/make_shape.py CONFIG -o OUT

With it, memory and time can be measured on machines that cannot get the model itself. CONFIG is a config.json, such as
those in recipes/configs. Weights are drawn from normal(0, 0.02), norms are ones, and biases are zeros. One tensor is in
memory at a time.
"""

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.load import check_causal_lm
from compress.checkpoint.read import read_json
from compress.checkpoint.write import CheckpointWriter, TensorSpec, both_spellings
from compress.cli.console import emit
from compress.cli.options import json_option
from compress.model.shapes import parameter_shapes

DEVIATION = 0.02
ROWS = 4096  # rows drawn in float32 at a time


def random_parameter(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    """A parameter: random numbers for a matrix, zeros for a bias, ones for a norm."""
    if len(spec.shape) == 1:
        return (torch.zeros if spec.name.endswith("bias") else torch.ones)(spec.shape, dtype=spec.dtype.torch)
    tensor = torch.empty(spec.shape, dtype=spec.dtype.torch)
    for rows in tensor.split(ROWS):
        rows.copy_(DEVIATION * torch.randn(rows.shape, generator=generator))
    return tensor


def make_shape(config: dict[str, Any], out: Path, tokenizer: Path | None, seed: int) -> dict[str, Any]:
    """Write the checkpoint. Returns its row. If an error occurs, no file is left."""
    dtype = model_dtype(config)
    specs = [TensorSpec(name, dtype, shape) for name, shape in parameter_shapes(config).items()]
    generator = torch.Generator().manual_seed(seed)
    writer = CheckpointWriter(out, specs)
    try:
        for spec in specs:
            writer.write(spec.name, random_parameter(spec, generator))
        writer.publish(both_spellings(config), source=tokenizer)
    except BaseException:
        writer.discard()
        raise
    return {
        "out": str(out),
        "tensors": len(specs),
        "bytes": sum(spec.bytes for spec in specs),
        "dtype": dtype.value,
    }


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--blocks", type=click.IntRange(1), help="Number of decoder blocks.  [default: that of CONFIG]")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint.")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Model folder whose tokenizer is copied. It may have fewer tokens than the vocabulary.",
)
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16"]), default="float16", show_default=True, help="Dtype on disk."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the weights.")
@json_option
def main(
    config: Path, blocks: int | None, out: Path, tokenizer: Path | None, dtype: str, seed: int, as_json: bool
) -> None:
    settings = read_json(config)
    check_causal_lm(config.parent, settings)
    settings |= {"dtype": dtype, "num_hidden_layers": blocks or settings["num_hidden_layers"]}
    settings.pop("layer_types", None)  # has one name per block; transformers computes it for the new number
    emit(make_shape(settings, out, tokenizer, seed), as_json=as_json)


if __name__ == "__main__":
    main()
