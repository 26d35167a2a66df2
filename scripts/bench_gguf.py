"""Compare our .gguf files with llama.cpp's own 4-bit types: python scripts/bench_gguf.py REFERENCE TEXT EVAL_TEXT...

REFERENCE is a plain model whose weights lie on no 4-bit grid (scripts/make_reference.py). It is quantized by qcompress
on windows of TEXT, and by llama.cpp (scripts/llama_library.py) with an importance matrix of the same windows. All files
are read back by the gguf package in float32, and compared with REFERENCE on windows of each EVAL_TEXT. Embedding and
head stay in 16 bits in all files. llama.cpp replaces a type that does not fit the rows of a matrix: `types` in the JSON
has the types in each file.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from llama_library import TYPES, fetch_library, quantize
from script_options import out_option

from calibration.windows import build_windows
from compress.checkpoint.gguf.importer import import_gguf
from compress.checkpoint.gguf.shards import GgufModel
from compress.checkpoint.gguf.tensors import gguf_names
from compress.checkpoint.heldout import heldout_start
from compress.checkpoint.load import load_model, open_for_text
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.config import QuantizeConfig
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows
from compress.model.shapes import linear_shapes
from compress.quantize.job import RunOptions, quantize_checkpoint
from compress.ship.convert import convert
from compress.ship.gguf.export import write_file
from compress.ship.gguf.settings import EXACT

Row = dict[str, Any]
OURS: dict[str, Row] = {
    "gptq, group 32": {"method": "gptq", "format": "gptq", "group_size": 32},
    "gptq, group 64": {"method": "gptq", "format": "gptq", "group_size": 64},
    "awq+gptq, group 64": {"method": "awq+gptq", "format": "awq", "group_size": 64},
}
LIBRARY = Path("build/llama-cpp-library")
SEQ_LEN = 512  # tokens per window, of all texts


def our_file(reference: Path, text: Path, folder: Path, name: str, samples: int) -> Path:
    """Quantize the reference with a row of OURS, and convert the result to a .gguf file."""
    stem = name.replace("+", "-").replace(", group ", "-")
    file, checkpoint = folder / f"{stem}.gguf", folder / stem
    if not file.exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        config = QuantizeConfig(text=(str(text),), samples=samples, seq_len=SEQ_LEN, **OURS[name])
        quantize_checkpoint(reference, checkpoint, config, RunOptions(report=report))
        convert(checkpoint, file, "gguf")
    return file


def plain_file(reference: Path, folder: Path) -> Path:
    """The reference itself as a .gguf file in its 16-bit type."""
    file = folder / "reference.gguf"
    if not file.exists():
        partial = file.with_suffix(".partial")
        write_file(open_for_text(reference), partial, EXACT)
        partial.rename(file)
    return file


@torch.no_grad()
def mean_squares(reference: Path, text: Path, samples: int) -> dict[str, np.ndarray]:
    """The importance matrix of a model: the mean square of each input of each linear, by the tensor's name.

    llama-imatrix computes the same from the same tokens.
    """
    checkpoint = open_for_text(reference)
    model, token = load_model(checkpoint), heldout_start(checkpoint)["token"]
    names = gguf_names("llama", checkpoint.config["num_hidden_layers"], list(linear_shapes(checkpoint.config)))
    sums: dict[str, torch.Tensor] = {}

    def adder(name: str) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].flatten(0, -2).double().square().sum(0)

        return add

    hooks = [model.get_submodule(name).register_forward_pre_hook(adder(gguf)) for name, gguf in names.items()]
    settings = {"n_samples": samples, "seq_len": SEQ_LEN, "start_token": token}
    ids = build_windows([str(text)], checkpoint.tokenizer, **settings).ids
    for part in ids.split(1):
        model.model(part, use_cache=False)
        report({"importance": f"{len(sums)} linears"})
    for hook in hooks:
        hook.remove()
    return {f"{name}.weight": (value / ids.numel()).float().numpy() for name, value in sums.items()}


def their_files(library: Path, plain: Path, reference: Path, text: Path, samples: int) -> dict[str, Path]:
    """The plain file in each of llama.cpp's TYPES, quantized by llama.cpp with an importance matrix of `text`."""
    files = {f"llama.cpp {kind}": plain.with_name(f"llama-cpp-{kind}.gguf") for kind in TYPES}
    if not all(file.exists() for file in files.values()):
        importance = mean_squares(reference, text, samples)
        for kind, file in zip(TYPES, files.values(), strict=True):
            quantize(library, plain, file, kind, importance)
    return files


def bits_per_weight(file: Path) -> float:
    """Bits per weight of the matrices of all blocks, scales included."""
    tensors = [one for one in GgufModel(file).tensors.values() if one.name.startswith("blk.") and len(one.shape) == 2]
    return 8 * sum(one.bytes for one in tensors) / sum(one.rows * one.shape[-1] for one in tensors)


def types(file: Path) -> Row:
    """How many matrices of the blocks have each ggml type."""
    from compress.checkpoint.gguf.tensors import type_name

    names = [
        type_name(one)
        for one in GgufModel(file).tensors.values()
        if one.name.startswith("blk.") and len(one.shape) == 2
    ]
    return {name: names.count(name) for name in sorted(set(names))}


def measure(reference: Path, files: dict[str, Path], texts: tuple[str, ...], samples: int) -> list[Row]:
    """Size and drift of each file: `kl` holds a KL with its standard error for each text."""
    folders = {name: file.with_suffix(".read-back") for name, file in files.items()}
    for name, folder in folders.items():
        if not folder.exists():
            import_gguf(files[name], folder, dtype=torch.float32)
    rows = [
        {"name": name, "bytes": file.stat().st_size, "bits_per_weight": bits_per_weight(file), "types": types(file)}
        for name, file in files.items()
    ]
    for text in texts:
        candidates = list(folders.values())
        windows = evaluation_windows(reference, candidates, text, n_samples=samples, seq_len=SEQ_LEN)
        drifts = compare_rows(reference, candidates, windows, report=report)[1:]
        for row, drift in zip(rows, drifts, strict=True):
            kept = ("kl", "kl_se", "perplexity", "perplexity_ratio", "top1")
            row.setdefault("texts", {})[Path(text).name] = {key: drift[key] for key in kept}
    return rows


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("eval_texts", nargs=-1, required=True)
@out_option("build/gguf", "Folder for the files. Files that exist are not made again.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Windows of TEXT.")
@click.option("--eval-samples", type=click.IntRange(1), default=12, show_default=True, help="Windows per EVAL_TEXT.")
@json_option
def main(
    reference: Path,
    text: Path,
    eval_texts: tuple[str, ...],
    out: Path,
    samples: int,
    eval_samples: int,
    as_json: bool,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plain = plain_file(reference, out)
    files = {f"qcompress {name}": our_file(reference, text, out, name, samples) for name in OURS}
    files |= their_files(fetch_library(LIBRARY), plain, reference, text, samples)
    emit(measure(reference, files, eval_texts, eval_samples), as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
