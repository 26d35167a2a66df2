"""Compare every linear of a .gguf file with its checkpoint, bit by bit: python scripts/check_gguf.py CKPT MODEL.gguf

The file is read by the gguf package alone: its reader, its dequantization and its table of names. The checkpoint's
weights are codes, scales and zeros from its safetensors files. Exit code 3 if a weight differs.
"""

import sys
from pathlib import Path

import click
import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize

from compress.checkpoint.formats import quantized_weight
from compress.checkpoint.load import open_causal_lm
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.ship.source import open_quantized, packed_modules

INTERLEAVED = ("llama", "granite", "smollm3")  # architectures whose converters reorder rows of queries and keys


def rows_in_order(values: np.ndarray, module: str, architecture: str, heads: dict[str, int]) -> np.ndarray:
    """The rows of a tensor in the order of transformers: the two halves of each head one after the other."""
    count = heads.get(module.rpartition(".")[2])
    if architecture not in INTERLEAVED or count is None:
        return values
    return values.reshape(count, len(values) // count // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def main(checkpoint: Path, file: Path, as_json: bool) -> None:
    source, row = open_quantized(open_causal_lm(checkpoint))
    reader = GGUFReader(file)
    architecture = str(reader.fields["general.architecture"].contents())
    heads = {"q_proj": source.config["num_attention_heads"], "k_proj": source.config["num_key_value_heads"]}
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(numbers[architecture], source.config["num_hidden_layers"])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    modules, weights, different = packed_modules(source, row), 0, 0
    for index, module in enumerate(modules, 1):
        tensor = tensors[f"{table.get_name(module)}.weight"]
        values = rows_in_order(dequantize(tensor.data, tensor.tensor_type), module, architecture, heads)
        weight = quantized_weight(source, module).dequantize().numpy()
        weights, different = weights + weight.size, different + int((values != weight).sum())
        report({"linear": f"{index}/{len(modules)}"})
    kinds = sorted({tensors[f"{table.get_name(module)}.weight"].tensor_type.name for module in modules})
    emit(
        {
            "file": str(file),
            "types": ", ".join(kinds),
            "linears": len(modules),
            "weights": weights,
            "different": different,
        },
        as_json=as_json,
    )
    sys.exit(3 if different else 0)


if __name__ == "__main__":
    main()
