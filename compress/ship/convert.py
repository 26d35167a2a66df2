"""Convert a quantized checkpoint to another format of vLLM: the same codes, scales and zeros, packed in another way.

    from                to awq              to gptq               to compressed-tensors
    awq                 exact               only if symmetric     exact
    gptq                exact, 4 bits only  exact                 exact
    compressed-tensors  exact, 4 bits only  only if symmetric     exact

Symmetric: every zero is the middle code, 2**(bits - 1); gptq stores no other zeros. Nothing is quantized again.
A weight that a format cannot store exactly is an error, which names the linear. With `allow_error`, a weight with zero
points is rounded to a symmetric grid for gptq, and the result states the measured error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.check.run import check_written
from compress.checkpoint.check.table import make_table
from compress.checkpoint.formats import FORMATS, Format, packed_config, quantized_weight
from compress.checkpoint.model_card import CARD, origin, write_card
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.record import record_text
from compress.checkpoint.schemes import HEAD, Schemes, kind
from compress.checkpoint.write import CheckpointWriter, TensorSpec, both_spellings, check_out
from compress.core.errors import GateFailure, QCompressError
from compress.core.grid import QuantizedWeight, Scheme, find_grid
from compress.core.lock import output_lock
from compress.core.report import Row
from compress.model.config_keys import plain_config
from compress.quantize.methods.rtn import round_to_grid
from compress.ship.gguf.error import MeasuredError
from compress.ship.source import open_quantized, packed_modules

GGUF = "gguf"
LINEARS_ONLY = ("awq", "gptq")  # vLLM reads packed embeddings in compressed-tensors only


@dataclass(frozen=True)
class Conversion:
    """A checkpoint, the format it has, the format to write, and shape (out, in) and scheme of each packed module.

    `error` sums the errors of the weights that the format does not store exactly.
    """

    checkpoint: Checkpoint
    source: Format
    target: Format
    shapes: dict[str, tuple[int, int]]
    schemes: Schemes
    error: MeasuredError = field(default_factory=MeasuredError)

    def read(self, module: str) -> QuantizedWeight:
        """Codes, scales and zeros of a packed module, as they will be written."""
        weight, scheme = quantized_weight(self.checkpoint, module), self.schemes[module]
        if not scheme.sym or weight.has_middle_zeros:
            return replace(weight, sym=scheme.sym)
        rounded = symmetric_weight(weight, scheme)
        self.error.add(rounded.dequantize(), weight.dequantize())
        return rounded

    @property
    def errors(self) -> list[Row]:
        """The measured error, as a list of one row; empty if the conversion is exact."""
        return [self.error.row(self.target.name)] if self.error.tensors else []

    @property
    def unquantized(self) -> list[str]:
        """The linears of the model that are not packed. Loaders need their names."""
        linears = make_table(self.checkpoint.config).linears
        return [name for name in (*linears, HEAD) if name not in self.schemes]


def convert(
    source: Path,
    out: Path,
    format_name: str,
    *,
    allow_error: bool = False,
    embedding_type: str | None = None,
    max_size: int | None = None,
) -> Row:
    """Write the quantized checkpoint at `source` to `out`: a folder in a format of FORMATS, or a file for "gguf".

    `embedding_type` and `max_size` are settings of .gguf files, see `GgufSettings`. With `allow_error`, a weight that
    the format cannot store exactly is rounded. Returns a row with `out`, `format`, `bytes`, and `errors`: what is not
    exact, with its measured error. Raises QCompressError if the checkpoint is not quantized or the format cannot hold a
    weight, GateFailure if the result is not the same model. Then nothing is written.
    """
    check_apart(source, out)
    if format_name == GGUF:
        from compress.ship.gguf.export import export_gguf
        from compress.ship.gguf.settings import GgufSettings

        return export_gguf(source, out, GgufSettings(embedding_type, max_size, allow_error))
    for option, value in {"--embedding-type": embedding_type, "--max-size": max_size}.items():
        if value is not None:
            raise QCompressError(f"{option} {value}: is a setting of .gguf files; leave it out, or use --to gguf")
    return convert_folder(source, out, format_name, allow_error=allow_error)


def check_apart(source: Path, out: Path) -> None:
    """Raises QCompressError if one of two paths is the other or lies inside it. Links are followed."""
    folder, target = source.resolve(), out.resolve()
    if target.is_relative_to(folder):
        raise QCompressError(f"{out}: lies in the source folder {source}; give an --out outside it")
    if folder.is_relative_to(target):
        raise QCompressError(f"{out}: contains the source folder {source}; give an --out beside it")


def convert_folder(source: Path, out: Path, format_name: str, *, allow_error: bool = False) -> Row:
    """Write the quantized checkpoint at `source` to the folder `out`, in a format of FORMATS.

    Returns a row with `out`, `format`, `linears`, `bytes` and `errors`. Every written weight is unpacked again and
    compared with the source's codes, scales and zeros. Raises QCompressError if the checkpoint is not quantized or the
    format cannot hold a weight exactly, GateFailure if a written weight differs or the result breaks a rule of `check`.
    Then nothing is written.
    """
    check_format(format_name)
    with output_lock(out):
        check_out(out)
        checkpoint, row = open_quantized(source)
        conversion = plan_conversion(checkpoint, row, FORMATS[format_name], allow_error=allow_error)
        writer = CheckpointWriter(out, planned_specs(conversion))
        try:
            write_tensors(conversion, writer)
            publish(conversion, writer)
        except BaseException:
            writer.discard()
            raise
    return {
        "model": str(source),
        "out": str(out),
        "format": format_name,
        "linears": len(conversion.schemes),
        "bytes": Checkpoint(out).bytes,
        "errors": conversion.errors,
    }


def check_format(name: str) -> None:
    """Raises QCompressError if there is no format of this name."""
    if name not in FORMATS:
        raise QCompressError(f"format {name!r} is unknown; choose {', '.join((*FORMATS, GGUF))}")


def plan_conversion(checkpoint: Checkpoint, source: Format, target: Format, *, allow_error: bool = False) -> Conversion:
    """The conversion of a checkpoint. Raises QCompressError if the target cannot hold every weight exactly.

    With `allow_error`, only a weight that the target cannot hold at all is an error.
    """
    shapes, schemes = {}, {}
    for module in packed_modules(checkpoint, source):
        weight = quantized_weight(checkpoint, module)
        reason = misfit(weight, module, target) or (None if allow_error else inexactness(weight, target))
        if reason:
            raise QCompressError(f"{checkpoint}: {module}: {reason}")
        out, inn = weight.codes.shape
        shapes[module], schemes[module] = (out, inn), target_scheme(checkpoint, source, module, weight, target)
    return Conversion(checkpoint, source, target, shapes, schemes)


def misfit(weight: QuantizedWeight, module: str, target: Format) -> str | None:
    """The reason why a format cannot hold a weight at all, with the cure, or None if it can."""
    if target.name in LINEARS_ONLY and kind(module) == "embedding":
        return f"{target.name} has no packed embeddings; use --to compressed-tensors"
    if target.name == "awq" and weight.bits != 4:
        return f"awq stores 4 bits, and this weight has {weight.bits}; use --to gptq or compressed-tensors"
    if weight.zeros.numel() and int(weight.zeros.max()) >= 2**weight.bits:
        return f"a zero is {int(weight.zeros.max())}, and only a gptq file can store it; quantize the model again"
    return None


def inexactness(weight: QuantizedWeight, target: Format) -> str | None:
    """The reason why a format cannot hold a weight exactly, with the cure, or None if it can."""
    if False in target.symmetric or weight.has_middle_zeros:
        return None
    row, group = (weight.zeros != weight.middle).nonzero()[0].tolist()
    zero = int(weight.zeros[row, group])
    return (
        f"gptq stores symmetric grids with zero {weight.middle}, but group {group} of row {row} has zero {zero}; "
        "use --to compressed-tensors, quantize with --format gptq, or give --allow-error to round it"
    )


def symmetric_weight(weight: QuantizedWeight, scheme: Scheme) -> QuantizedWeight:
    """A weight with zero points, rounded to the symmetric grid of each group that has the least squared error."""
    values = weight.dequantize()
    scales, zeros = find_grid(values, scheme, torch.ones(values.shape[1]))
    return round_to_grid(values, scales, zeros, scheme)


def target_scheme(
    checkpoint: Checkpoint, source: Format, module: str, weight: QuantizedWeight, target: Format
) -> Scheme:
    """The scheme of a module in the target format, with the dtype of its stored scales."""
    name = "weight_scale" if source.name == "compressed-tensors" else "scales"
    sym = weight.sym and weight.has_middle_zeros if len(target.symmetric) > 1 else target.symmetric[0]
    return Scheme(weight.bits, weight.group_size, sym, checkpoint.tensors[f"{module}.{name}"].dtype)


def planned_specs(conversion: Conversion) -> list[TensorSpec]:
    """Every tensor of the result: packed weights in the new format, all others unchanged."""
    specs = []
    for module, scheme in conversion.schemes.items():
        parts = conversion.target.specs(*conversion.shapes[module], scheme)
        specs += [TensorSpec(f"{module}.{part.name}", part.dtype, part.shape) for part in parts]
    return specs + [TensorSpec(name, info.dtype, info.shape) for name, info in unpacked(conversion)]


def unpacked(conversion: Conversion) -> Iterator[tuple[str, Any]]:
    """Name and place of every tensor that is not part of a packed module's weight."""
    biases = {f"{module}.bias" for module in conversion.schemes}
    for name, info in conversion.checkpoint.tensors.items():
        if name.rpartition(".")[0] not in conversion.schemes or name in biases:
            yield name, info


def write_tensors(conversion: Conversion, writer: CheckpointWriter) -> None:
    """Write all tensors. Raises GateFailure if a weight differs when it is unpacked again."""
    for module, scheme in conversion.schemes.items():
        weight = conversion.read(module)
        parts = conversion.target.save(weight, scheme.dtype.torch)
        check_equal(module, weight, conversion.target.load(parts.__getitem__, scheme))
        for suffix, part in parts.items():
            writer.write(f"{module}.{suffix}", part)
    for name, _ in unpacked(conversion):
        writer.write(name, conversion.checkpoint.tensor(name))


def check_equal(module: str, weight: QuantizedWeight, written: QuantizedWeight) -> None:
    """Raises GateFailure if codes, scales or zeros of a written weight differ from the original's."""
    for name in ("codes", "scales", "zeros"):
        if not torch.equal(getattr(weight, name), getattr(written, name)):
            raise GateFailure(f"{module}: the new format changes its {name}; report this as a bug")


def publish(conversion: Conversion, writer: CheckpointWriter) -> None:
    """Write config.json, tokenizer, record and card, and validate the folder before it gets its name."""
    checkpoint, record = conversion.checkpoint, conversion_record(conversion, writer)
    config = packed_config(
        plain_config(checkpoint.config), conversion.target, conversion.schemes, conversion.unquantized
    )
    ordered = {key: config[key] for key in (*checkpoint.config, *config)}  # in the source's order
    writer.publish(
        both_spellings(ordered),
        source=checkpoint.path,
        extra={RECORD: record, CARD: write_card(json.loads(record))},
        inspect=lambda folder: check_written(folder, checkpoint),
    )


def conversion_record(conversion: Conversion, writer: CheckpointWriter) -> str:
    """The text of qcompress.json: the source's record if there is one, with the new format and the source.

    The record of a source does not describe weights that were rounded again, so it is not continued then.
    """
    checkpoint, name, errors = conversion.checkpoint, conversion.target.name, conversion.errors
    earlier = dict(checkpoint.record) if is_sound(checkpoint.record) and not errors else {}
    command = str(earlier.pop("command", "convert"))
    settings = earlier.pop("settings", {}) | {"format": name}
    for key in ("digests", "versions"):
        earlier.pop(key, None)
    if "size" in earlier:
        earlier["size"] = earlier["size"] | {"bytes": sum(shard.bytes for shard in writer.shards)}
    converted = origin(checkpoint) | {"format": conversion.source.name, "errors": errors}
    return record_text(command, settings, **earlier | {"converted": converted})


def is_sound(record: Row) -> bool:
    """Whether the source's record has the types that `quantize` writes. Another record is not continued."""
    size, rows = record.get("size", {"bytes": 0, "source_bytes": 0}), record.get("rows", [])
    texts = isinstance(record.get("command", ""), str) and isinstance(record.get("settings", {}), dict)
    sizes = isinstance(size, dict) and all(isinstance(size.get(key), int) for key in ("bytes", "source_bytes"))
    return texts and sizes and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
