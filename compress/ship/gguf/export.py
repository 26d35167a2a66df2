"""Write a quantized checkpoint as one .gguf file, and read the file back before it gets its name.

The proof: the importer reads config, tensors and tokenizer from the written file. Every weight must equal the
checkpoint's dequantized weight bit by bit, the config must describe the same model, and sample texts must get the same
token ids. Otherwise nothing is written. The error of tensors that the user allows to be inexact is measured here.
"""

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
from compress.core.errors import BadValueError, GateFailure, QCompressError
from compress.core.file_kind import beginning_kind
from compress.core.lock import output_lock
from compress.core.report import Row
from compress.model.blocks import make_config, make_skeleton
from compress.ship.gguf.error import MeasuredError
from compress.ship.gguf.file import open_file, total_bytes, write_tensors
from compress.ship.gguf.metadata import Exported, Metadata, export_config, find_target
from compress.ship.gguf.settings import EXACT, GgufSettings
from compress.ship.gguf.tensors import GgufSource, OutputTensor, output_tensors
from compress.ship.gguf.tokens import differences, export_tokens
from compress.ship.source import open_quantized

PARTIAL = beginning_kind(b"GGUF")
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "F16": 1,
    "BF16": 32,
}  # general.file_type, named after the type of most tensors
TOLERANCE = 1e-6  # of settings: a .gguf file stores them in float32
UNRELATED = (  # settings that do not change the model, or that the tokenizer's keys store
    *("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version", "use_cache", "model_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range", "quantization_config"),
    *("attention_dropout", "pretraining_tp", "_model_name_or_path", "_attn_implementation"),
)
REPEATED = ("type",)  # of rope_parameters: an older spelling of rope_type


def export_gguf(path: Path, out: Path, settings: GgufSettings = EXACT) -> Row:
    """Write the quantized checkpoint at `path` as the file `out`. Returns a row with `out`, `types` and `bytes`.

    `errors` of the row lists each type that is not exact, with its measured error. Raises QCompressError if a weight, a
    setting or the tokenizer cannot be stored exactly, or if the file exceeds `settings.max_size`; the error names it.
    Raises GateFailure if the written file does not read back as the same model. Then nothing remains at `out`.
    """
    check_package(out)
    check_file(out)
    checkpoint, _ = open_quantized(open_for_text(path))
    with output_lock(out):
        partial = out.with_name(f".{out.name}.partial")
        check_no_link(partial)
        PARTIAL.check(partial)
        try:
            tensors = write_file(checkpoint, partial, settings)
            errors = check_same(checkpoint, partial, tensors)
            with file_errors(out):
                partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
    counts = {kind: sum(tensor.type == kind for tensor in tensors) for kind in sorted({one.type for one in tensors})}
    types = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    row = {"model": str(path), "out": str(out), "format": "gguf", "types": types, "bytes": out.stat().st_size}
    warning = "; ".join(differences(checkpoint.tokenizer))
    return row | ({"warning": warning} if warning else {}) | {"errors": errors}


def write_plain_gguf(checkpoint: Checkpoint, file: Path) -> None:
    """Write a 16-bit checkpoint as a .gguf file, for tools of llama.cpp.

    Raises QCompressError for what cannot be stored, and GateFailure if the file does not read back as the same model.
    """
    check_package(file)
    check_same(checkpoint, file, write_file(checkpoint, file, EXACT))


def check_file(out: Path) -> None:
    """Raises QCompressError unless `out` is a new file whose name ends in .gguf."""
    check_parent(out)
    if out.suffix != ".gguf":
        raise QCompressError(f"{out}: the name of the file must end in .gguf; give --out NAME.gguf")
    if out.exists() or out.is_symlink():
        raise QCompressError(f"{out}: exists already; give a new file, or remove it first")


def write_file(checkpoint: Checkpoint, file: Path, settings: GgufSettings) -> list[OutputTensor]:
    """Write header and tensors, one at a time. Returns the tensors. Raises QCompressError for what cannot be stored."""
    config = make_config(checkpoint.config)
    try:
        prefix, architecture = find_target(config.model_type)
        exported = export_config(config, prefix, architecture)
        tokens = export_tokens(checkpoint.tokenizer, config)
        source = GgufSource(checkpoint, config, prefix, architecture)
        values = {f"{prefix}.{key}": value for key, value in exported.values.items()} | tokens
        with file_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            return write_parts(file, values, exported, source, settings)
    except ValueError as error:
        raise QCompressError(f"{checkpoint}: {error}") from None


def write_parts(
    file: Path, values: Metadata, exported: Exported, source: GgufSource, settings: GgufSettings
) -> list[OutputTensor]:
    """Write the file with the most exact type of embedding for which it is small enough. Returns the tensors.

    Raises ValueError if the file would be larger than `settings.max_size` with each of them.
    """
    shapes = {name: tuple(one.shape) for name, one in make_skeleton(source.checkpoint.config).named_parameters()}
    size = 0
    for embedding in settings.embedding_types(source.config.hidden_size):
        tensors = list(output_tensors(source, shapes, embedding, allow_error=settings.allow_error))
        with open_file(file, source.prefix, general(source, tensors) | values, exported, tensors) as writer:
            size = total_bytes(writer, exported, tensors)
            if settings.max_size is None or size <= settings.max_size:
                write_tensors(writer, exported, source, tensors)
                return tensors
    raise BadValueError(
        f"the .gguf file would have {size:,} bytes, more than --max-size {settings.max_size:,}; "
        "use a larger --max-size, or quantize a smaller model"
    )


def general(source: GgufSource, tensors: list[OutputTensor]) -> Metadata:
    """The metadata of the file as a whole: its name, and the type of most of its tensors."""
    counts = {kind: sum(tensor.type == kind for tensor in tensors) for kind in FILE_TYPES}
    return {
        "general.name": source.checkpoint.path.absolute().name,
        "general.file_type": FILE_TYPES[max(counts, key=lambda kind: counts[kind])],
        "general.quantization_version": 2,
    }


def check_same(checkpoint: Checkpoint, file: Path, tensors: list[OutputTensor]) -> list[Row]:
    """The error of each type that is not exact, measured on the file. Raises GateFailure if another tensor differs."""
    model = GgufModel(file)
    config = read_config(model)
    check_config(checkpoint, config)
    parameters, _ = plan_parameters(model, config)
    read, errors = weight_reader(checkpoint), {one.type: MeasuredError() for one in tensors if not one.exact}
    inexact = {one.parameter: errors[one.type] for one in tensors if not one.exact}
    for name, parameter in parameters.items():
        written = torch.from_numpy(np.concatenate([part.reshape(-1) for part in parameter.parts()]))
        original = read(name).float().reshape(-1) + parameter.offset - parameter.offset  # rounded as in the file
        if name in inexact:
            inexact[name].add(written, original)
        elif not torch.equal(written, original):
            raise GateFailure(f"{file}: {name} does not read back bit by bit; report this as a bug")
    check_tokens(checkpoint, model)
    return [error.row(kind) for kind, error in errors.items()]


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
