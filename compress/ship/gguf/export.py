"""Write a quantized checkpoint as one .gguf file, and read the file back before it gets its name.

The proof: the importer reads config, tensors and tokenizer from the written file. Every weight must equal the
checkpoint's dequantized weight bit by bit, the config must describe the same model, and sample texts must get the same
token ids. Otherwise nothing is written.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.checkpoint.formats import weight_reader
from compress.checkpoint.gguf.config import read_config
from compress.checkpoint.gguf.importer import check_package, plan_parameters
from compress.checkpoint.gguf.shards import GgufModel
from compress.checkpoint.gguf.tokenizer import SAMPLE, build_tokenizer, encode
from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import Checkpoint
from compress.core.atomic import check_no_link, check_parent, file_errors
from compress.core.errors import GateFailure, QCompressError
from compress.core.file_kind import beginning_kind
from compress.core.lock import output_lock
from compress.core.report import Row
from compress.model.blocks import make_config, make_skeleton
from compress.ship.gguf.metadata import Exported, Metadata, export_config, find_target
from compress.ship.gguf.tensors import GgufSource, OutputTensor, output_tensors, tensor_bytes
from compress.ship.gguf.tokens import export_tokens
from compress.ship.source import open_quantized

PARTIAL = beginning_kind(b"GGUF")
FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "F16": 1, "BF16": 32}  # general.file_type, by the most common type
TOLERANCE = 1e-6  # of settings: a .gguf file stores them in float32
UNRELATED = (  # settings that do not change the model, or that the tokenizer's keys store
    *("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version", "use_cache", "model_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range", "quantization_config"),
    *("attention_dropout", "pretraining_tp", "_model_name_or_path", "_attn_implementation"),
)
REPEATED = ("type",)  # of rope_parameters: an older spelling of rope_type


def export_gguf(path: Path, out: Path) -> Row:
    """Write the quantized checkpoint at `path` as the file `out`. Returns a row with `out`, `types` and `bytes`.

    Raises QCompressError if a weight, a setting or the tokenizer cannot be stored exactly; the error names it. Raises
    GateFailure if the written file does not read back as the same model. Then nothing remains at `out`.
    """
    check_package(out)
    check_file(out)
    checkpoint, _ = open_quantized(open_for_text(path))
    with output_lock(out):
        partial = out.with_name(f".{out.name}.partial")
        check_no_link(partial)
        PARTIAL.check(partial)
        try:
            tensors = write_file(checkpoint, partial)
            check_same(checkpoint, partial)
            with file_errors(out):
                partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
    counts = {kind: sum(tensor.type == kind for tensor in tensors) for kind in sorted({one.type for one in tensors})}
    types = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"model": str(path), "out": str(out), "format": "gguf", "types": types, "bytes": out.stat().st_size}


def write_plain_gguf(checkpoint: Checkpoint, file: Path) -> None:
    """Write a 16-bit checkpoint as a .gguf file, for tools of llama.cpp.

    Raises QCompressError for what cannot be stored, and GateFailure if the file does not read back as the same model.
    """
    check_package(file)
    write_file(checkpoint, file)
    check_same(checkpoint, file)


def check_file(out: Path) -> None:
    """Raises QCompressError unless `out` is a new file whose name ends in .gguf."""
    check_parent(out)
    if out.suffix != ".gguf":
        raise QCompressError(f"{out}: the name of the file must end in .gguf; give --out NAME.gguf")
    if out.exists() or out.is_symlink():
        raise QCompressError(f"{out}: exists already; give a new file, or remove it first")


def write_file(checkpoint: Checkpoint, file: Path) -> list[OutputTensor]:
    """Write header and tensors, one at a time. Returns the tensors. Raises QCompressError for what cannot be stored."""
    config = make_config(checkpoint.config)
    try:
        prefix, architecture = find_target(config.model_type)
        exported = export_config(config, prefix, architecture)
        tokens = export_tokens(checkpoint.tokenizer, config)
        source = GgufSource(checkpoint, config, prefix, architecture)
        shapes = {name: tuple(one.shape) for name, one in make_skeleton(checkpoint.config).named_parameters()}
        tensors = list(output_tensors(source, shapes))
    except ValueError as error:
        raise QCompressError(f"{checkpoint}: {error}") from None
    counts = {kind: sum(tensor.type == kind for tensor in tensors) for kind in FILE_TYPES}
    general = {
        "general.name": checkpoint.path.absolute().name,
        "general.file_type": FILE_TYPES[max(counts, key=lambda kind: counts[kind])],
        "general.quantization_version": 2,
    }
    values = general | {f"{prefix}.{key}": value for key, value in exported.values.items()} | tokens
    with file_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_parts(file, prefix, values, exported, source, tensors)
    return tensors


def write_parts(
    file: Path, prefix: str, values: Metadata, exported: Exported, source: GgufSource, tensors: list[OutputTensor]
) -> None:
    """Write the file with the gguf package, one tensor in memory at a time, and flush it to the disk."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, prefix)
    for key, value in values.items():
        add_value(writer, key, value)
    for name, factors in exported.tensors.items():
        writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.type]
        rows = (*tensor.shape[:-1], tensor.bytes // int(np.prod(tensor.shape[:-1])))
        writer.add_tensor_info(tensor.name, rows, np.dtype(np.uint8), tensor.bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for factors in exported.tensors.values():
        writer.write_tensor_data(factors)
    for tensor in tensors:
        writer.write_tensor_data(tensor_bytes(source, tensor))
    writer.flush()
    for stream in writer.fout or []:
        os.fsync(stream.fileno())
    writer.close()


def add_value(writer: Any, key: str, value: Any) -> None:
    """Add a metadata value in the ggml type that llama.cpp expects for its Python type."""
    adders = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    getattr(writer, adders[type(value)])(key, value)


def check_same(checkpoint: Checkpoint, file: Path) -> None:
    """Raises GateFailure if the written file does not read back as the same model."""
    model = GgufModel(file)
    config = read_config(model)
    check_config(checkpoint, config)
    parameters, _ = plan_parameters(model, config)
    read = weight_reader(checkpoint)
    for name, parameter in parameters.items():
        written = torch.from_numpy(np.concatenate([part.reshape(-1) for part in parameter.parts()]))
        if not torch.equal(written, read(name).float().reshape(-1)):
            raise GateFailure(f"{file}: {name} does not read back bit by bit; report this as a bug")
    check_tokens(checkpoint, model)


def check_config(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """Raises GateFailure if the file's settings describe another model. The message names the setting."""
    settings = make_config(checkpoint.config).to_dict()
    window = {"sliding_window": config.get("sliding_window")}  # a class may have a window by default
    written = make_config({**window, **config, "model_type": settings["model_type"]}).to_dict()
    for key in sorted(settings.keys() - {*UNRELATED}):
        if not nearly_equal(settings.get(key), written.get(key)):
            raise GateFailure(
                f"{checkpoint}: config.json: {key} is {settings.get(key)!r:.80}, which a .gguf file cannot store: "
                f"llama.cpp would use {written.get(key)!r:.80}"
            )


def nearly_equal(one: Any, other: Any) -> bool:
    """Whether two settings are equal. Numbers may differ by the rounding to float32."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(nearly_equal(one.get(key), other.get(key)) for key in {*one, *other} - {*REPEATED})
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(nearly_equal, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))
    return bool(one == other)


def check_tokens(checkpoint: Checkpoint, model: GgufModel) -> None:
    """Raises GateFailure if a sample text gets other token ids from the file's vocabulary."""
    built = build_tokenizer(model)
    for line in SAMPLE:
        if encode(built, line) != encode(checkpoint.tokenizer, line):
            raise GateFailure(f"{checkpoint}: tokenizer.json: the .gguf file gives other token ids for {line!r:.60}")
