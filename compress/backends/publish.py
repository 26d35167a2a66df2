"""Publish what a backend wrote: only its tensors and its config.json, with the source's tokenizer, after `check`.

The tensors are copied byte for byte into new safetensors files. Nothing else of the backend's folder is kept.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from calibration.windows import Windows
from compress.backends.child import ChildResult
from compress.backends.complete import complete_config
from compress.checkpoint.check.run import check_written
from compress.checkpoint.formats import format_of
from compress.checkpoint.heldout import heldout_start
from compress.checkpoint.model_card import CARD, origin, write_card
from compress.checkpoint.read import RECORD, Checkpoint, open_checkpoint, read_json
from compress.checkpoint.record import record_text
from compress.checkpoint.schemes import ct_groups
from compress.checkpoint.workdir import check_small_files_unchanged, check_weights_unchanged
from compress.checkpoint.write import CheckpointWriter, TensorSpec
from compress.core.backend_config import GGUF, BackendConfig
from compress.core.errors import QCompressError
from compress.model.shapes import linear_shapes

GGUF_FILE = "model.gguf"
Row = dict[str, Any]


@dataclass(frozen=True)
class BackendJob:
    """A job of a backend: the source, settings with the chosen group size, windows and their start token.

    `small_files` is the digest of the source's tokenizer at the beginning. `backend` describes the backend and its
    environment, for the record.
    """

    source: Checkpoint
    config: BackendConfig
    windows: Windows
    start: Row
    small_files: str
    backend: Row


def publish(job: BackendJob, folder: Path, out: Path, result: ChildResult) -> Row:
    """Write the checkpoint that lies in the work folder to `out`. Returns a row with sizes.

    Raises QCompressError if it is not what was requested, and GateFailure if it breaks a rule of `check`.
    """
    written = folder / "checkpoint"
    check_regular(written)
    file = None
    if job.config.format == GGUF:
        file, written = written / GGUF_FILE, folder / "dequantized"
        import_file(file, written, job.source)
    completed = [] if file else complete_config(written, job.source)
    checkpoint = open_written(written, job.config)
    check_unchanged(job)
    size = measure(checkpoint, file, job.source)
    record = make_record(job, result, size, completed)
    write(job, checkpoint, out, record, file)
    return size


def check_regular(folder: Path) -> None:
    """Raises QCompressError if the backend wrote no folder, or a link in it, which could lead to any file."""
    if folder.is_symlink() or not folder.is_dir():
        raise QCompressError("the backend wrote no checkpoint")
    link = next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)
    if link is not None:
        raise QCompressError(f"the backend wrote a link, {link.relative_to(folder)}; a checkpoint has only files")


def import_file(file: Path, out: Path, source: Checkpoint) -> None:
    """Dequantize a .gguf file to a 16-bit checkpoint."""
    from compress.checkpoint.gguf.importer import import_gguf

    if not file.is_file():
        raise QCompressError(f"the backend wrote no {GGUF_FILE}")
    import_gguf(file, out, tokenizer=source.path)


def open_written(folder: Path, config: BackendConfig) -> Checkpoint:
    """The backend's checkpoint. Raises QCompressError if format, bits or group size are not those of the request."""
    checkpoint = open_checkpoint(folder)
    row = format_of(checkpoint)
    if (row.name if row else GGUF) != config.format:
        name = row.name if row else "an unquantized checkpoint"
        raise QCompressError(f"the backend wrote {name}, but {config.format} was requested")
    bits, group_size = declared(checkpoint) if row else (None, None)
    if row and (bits, group_size) != (4, config.group_size):
        written, requested = f"{bits} bits in groups of {group_size}", f"4 bits in groups of {config.group_size}"
        raise QCompressError(f"the backend wrote {written}, but {requested} were requested")
    return checkpoint


def declared(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Bits and group size in quantization_config."""
    quant = checkpoint.quantization or {}
    for group in ct_groups(quant).values():
        weights = group.get("weights") or {}
        return weights.get("num_bits"), weights.get("group_size")
    return quant.get("bits", quant.get("w_bit")), quant.get("group_size", quant.get("q_group_size"))


def check_unchanged(job: BackendJob) -> None:
    """Raises QCompressError if the source changed while the backend ran."""
    check_weights_unchanged(job.source)
    check_small_files_unchanged(job.source, job.small_files)


def measure(checkpoint: Checkpoint, file: Path | None, source: Checkpoint) -> Row:
    """Bytes of the result and of the source, and bits per quantized weight; for a .gguf file, those of the file."""
    linears = linear_shapes(source.config)
    weights = sum(prod(shape) for shape in linears.values())
    if file is None:
        packed = sum(info.bytes for name, info in checkpoint.tensors.items() if name.rpartition(".")[0] in linears)
        return {
            "bytes": checkpoint.bytes,
            "source_bytes": source.bytes,
            "bits_per_weight": round(8 * packed / weights, 4),
        }
    return {
        "bytes": file.stat().st_size,
        "source_bytes": source.bytes,
        "bits_per_weight": round(8 * linear_bytes(file) / weights, 4),
    }


def linear_bytes(file: Path) -> int:
    """The bytes of all quantized matrices of the blocks in a .gguf file."""
    from gguf import GGUFReader

    tensors = GGUFReader(file).tensors
    return sum(int(one.n_bytes) for one in tensors if one.name.startswith("blk.") and len(one.shape) > 1)


def make_record(job: BackendJob, result: ChildResult, size: Row, completed: list[Row]) -> str:
    """The text of qcompress.json. Run times are left out, as in the records of qcompress's own methods."""
    return record_text(
        "quantize",
        asdict(job.config),
        source=origin(job.source),
        size=size,
        start=heldout_start(job.source),
        calibration=job.windows.manifest | {"start": job.start},
        backend=job.backend | {"versions": result.versions},
        completed=completed,
    )


def write(job: BackendJob, checkpoint: Checkpoint, out: Path, record: str, file: Path | None) -> None:
    """Copy all tensors, and publish the folder once it passes `check`. Nothing remains at `out` if that fails."""
    specs = [TensorSpec(name, info.dtype, info.shape) for name, info in checkpoint.tensors.items()]
    writer = CheckpointWriter(out, specs)
    try:
        for spec in specs:
            writer.write(spec.name, checkpoint.tensor(spec.name))
        if file is not None:
            shutil.move(file, writer.folder / GGUF_FILE)
        writer.publish(
            read_json(checkpoint.path / "config.json"),
            source=job.source.path,
            extra={RECORD: record, CARD: write_card(json.loads(record))},
            inspect=inspector(job),
        )
    except BaseException:
        writer.discard()
        raise


def inspector(job: BackendJob) -> Callable[[Path], None]:
    """The check of the complete folder before it gets its name."""
    return lambda folder: check_written(folder, job.source, source=job.source)
