"""Write a checkpoint: plan its files, stream its tensors in any order, and rename the directory when it is complete.

All names, dtypes and shapes are planned before the first byte. So the headers are written first, and each tensor goes
to its final offset. The directory has a temporary name until `publish`.
"""

import json
import os
import shutil
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.files import COPIED, INDEX, RECORD, read_json
from compress.checkpoint.door.rope import both_rope_spellings
from compress.checkpoint.read import DTYPE_NAMES, TensorInfo, read_tensor
from compress.checkpoint.record import tensor_bytes, tensor_digest, write_digests
from compress.core.atomic import check_no_link, file_errors, free_space
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.model.naming import find_naming
from compress.model.wrappers import TEXT

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 4_000_000_000
UNFINISHED = ".qcompress-unfinished"  # marks a temporary directory as this program's; removed when it gets its name


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor to be written. `stored` is its name in the file, if that differs."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    stored: str = field(default="", compare=False)

    @property
    def name_in_file(self) -> str:
        return self.stored or self.name

    @classmethod
    def of(cls, name: str, tensor: "Tensor") -> "TensorSpec":
        """The spec of a tensor in memory."""
        return cls(name, Dtype.of(tensor.dtype), tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One planned safetensors file: header, offset of each tensor's data, and size in bytes."""

    file: str
    header: bytes
    offsets: dict[str, int]
    bytes: int


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Files with at most `shard_bytes` of data each; a larger tensor gets a file of its own. Sizes are exact."""
    parts: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if parts[-1] and filled + spec.bytes > shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(spec)
        filled += spec.bytes
    if len(parts) == 1:
        return [plan_shard("model.safetensors", parts[0])]
    count = len(parts)
    return [plan_shard(f"model-{i:05d}-of-{count:05d}.safetensors", part) for i, part in enumerate(parts, 1)]


def plan_shard(file: str, specs: Sequence[TensorSpec]) -> Shard:
    """The header and offsets of one safetensors file with these tensors."""
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))  # aligns every tensor to its item size
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    for spec in ordered:
        entry = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape)}
        entries[spec.name_in_file] = {**entry, "data_offsets": [position, position + spec.bytes]}
        starts[spec.name] = position
        position += spec.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(file, header, {n: len(header) + start for n, start in starts.items()}, len(header) + position)


def planned_bytes(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> int:
    """Total size in bytes of the safetensors files for these tensors, headers included."""
    return sum(shard.bytes for shard in plan_shards(specs, shard_bytes))


def partial_path(out: Path) -> Path:
    """The temporary directory of a checkpoint that is not complete yet."""
    return out.with_name(f".{out.name}.partial")


def check_out(out: Path) -> None:
    """Raises QCompressError if a checkpoint cannot be renamed to `out`: a link, a mount point or a folder with files.

    The checkpoint is written beside `out` and takes its place by a rename, which replaces an empty folder only. Another
    program's files in the temporary directory raise QCompressError too.
    """
    inside = f"give a new folder inside it, such as {out / 'model'}"
    if out.is_symlink():
        raise QCompressError(f"{out}: is a link, which a rename cannot replace; {inside}")
    if os.path.ismount(out):
        raise QCompressError(f"{out}: is a mount point, which a rename cannot replace; {inside}")
    if out.exists() and out.samefile("."):
        raise QCompressError(f"{out}: is the current directory; {inside}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise QCompressError(f"{out}: is not empty; give a new directory, or remove it first")
    check_ours(partial_path(out))


def check_ours(folder: Path) -> None:
    """Raises QCompressError if a temporary directory is a link, or has files but no marker of this program."""
    check_no_link(folder)
    ours = any((folder / name).is_file() for name in (UNFINISHED, RECORD))
    if not ours and folder.exists() and any(folder.iterdir()):
        raise QCompressError(
            f"{folder}: belongs to another job, so it is not removed; remove it yourself or choose another --out"
        )


def check_room(out: Path, needed: int) -> None:
    """Raises QCompressError if `check_out` does, or if the disk lacks room for `needed` bytes.

    Bytes that an interrupted run has already written are subtracted from `needed`.
    """
    check_out(out)
    folder, free = free_space(out.parent)
    needed -= sum(file.stat().st_blocks * 512 for file in partial_path(out).glob("*.safetensors"))
    if free < needed:
        raise QCompressError(f"{out}: needs {needed:,} bytes, but {folder} has {free:,} free; free some space")


class CheckpointWriter:
    """Writes a planned checkpoint, tensor by tensor, in any order. `out` stays empty until `publish`."""

    def __init__(self, out: Path, specs: Sequence[TensorSpec], *, keep: bool = False, shard_bytes: int = SHARD_BYTES):
        """`keep` reuses the files of an interrupted run of the same plan. Call `accept` for the tensors in them.

        Raises ValueError if two tensors have one name, and QCompressError if `check_room` does.
        """
        self.out, self.folder = out, partial_path(out)
        self.specs = {spec.name: spec for spec in specs}
        if len(self.specs) != len(specs):
            raise ValueError(f"{len(specs)} planned tensors have only {len(self.specs)} different names")
        self.shards = plan_shards(specs, shard_bytes)
        self.written: set[str] = set()
        self._digests: dict[str, str] = {}
        self._shard_of = {name: shard for shard in self.shards for name in shard.offsets}
        needed = sum(shard.bytes for shard in self.shards)
        self._kept = f"it continues from here; the checkpoint needs {needed:,} bytes in all" if keep else ""
        check_room(out, needed)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        with file_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / UNFINISHED).touch()
        for stale in self.folder.glob("*.safetensors"):
            if stale.name not in {shard.file for shard in self.shards}:
                stale.unlink()
        for shard in self.shards:
            self._start(shard)

    def _start(self, shard: Shard) -> None:
        path = self.folder / shard.file
        if path.exists() and path.stat().st_size == shard.bytes:
            with path.open("rb") as file:
                if file.read(len(shard.header)) == shard.header:
                    return
        with file_errors(path, self._kept), path.open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.bytes)

    def write(self, name: str, tensor: "Tensor") -> None:
        """Write one tensor at its offset. Raises ValueError if its name, dtype or shape differs from the plan."""
        spec = self.specs.get(name)
        if spec is None or spec != TensorSpec.of(name, tensor):
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} was not planned; the plan has {spec}")
        shard = self._shard_of[name]
        path = self.folder / shard.file
        with file_errors(path, self._kept), path.open("r+b") as file:
            file.seek(shard.offsets[name])
            file.write(tensor_bytes(tensor))
        self._digests[name] = tensor_digest(tensor)
        self.written.add(name)

    def digests(self, prefix: str) -> dict[str, str]:
        """The digests of the written tensors whose names begin with `prefix`."""
        return {name: digest for name, digest in self._digests.items() if name.startswith(prefix)}

    def accept(self, digests: Mapping[str, str], *, unknown: Container[str] = ()) -> None:
        """Mark tensors of an interrupted run as written. Raises QCompressError if the bytes of one have changed since.

        Tensors in `unknown` are not compared.
        """
        for name, digest in digests.items():
            if name not in unknown:
                if tensor_digest(self.tensor(name)) != digest:
                    file = self.folder / self._shard_of[name].file
                    raise QCompressError(
                        f"{file}: {name} changed since the interrupted run wrote it; start again with --restart"
                    )
                self._digests[name] = digest
            self.written.add(name)

    def tensor(self, name: str) -> "Tensor":
        """Read a tensor back that this run or an interrupted one has written."""
        spec, shard = self.specs[name], self._shard_of[name]
        return read_tensor(name, TensorInfo(self.folder / shard.file, shard.offsets[name], spec.dtype, spec.shape))

    def _digest(self, name: str) -> str:
        """The digest computed when the tensor was written; recomputed from disk for tensors of an interrupted run."""
        return self._digests.get(name) or tensor_digest(self.tensor(name))

    def publish(
        self,
        config: dict[str, Any],
        *,
        source: Path | None = None,
        copied: Sequence[str] = COPIED,
        extra: dict[str, str] | None = None,
        inspect: Callable[[Path], None] | None = None,
    ) -> None:
        """Write config, index, the `copied` files of `source` and digests, then rename the directory to `out`.

        `extra` maps file names to texts. `inspect` is called with the complete directory before the rename; if it
        raises, nothing is published. Raises ValueError if a planned tensor was never written.
        """
        missing = sorted(self.specs.keys() - self.written)
        if missing:
            raise ValueError(f"{len(missing)} planned tensors were not written; the first is {missing[0]}")
        with file_errors(self.folder, self._kept):
            if source is not None:
                copy_files(source, self.folder, copied)
            self._write_small_files(config, extra or {})
            self.sync()
            (self.folder / UNFINISHED).unlink(missing_ok=True)
        if inspect is not None:
            inspect(self.folder)
        with file_errors(self.out, self._kept):
            if self.out.exists():
                self.out.rmdir()  # checked empty at the start
            self.folder.rename(self.out)

    def _write_small_files(self, config: dict[str, Any], extra: dict[str, str]) -> None:
        """Write config.json, index, the texts in `extra`, and the digests of all files."""
        write_json(self.folder / "config.json", config)
        if len(self.shards) > 1:
            total = sum(spec.bytes for spec in self.specs.values())
            places = {self.specs[name].name_in_file: shard.file for name, shard in sorted(self._shard_of.items())}
            write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        for name, text in extra.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        specs = {spec.name_in_file: spec for spec in self.specs.values()}
        digests = {name: self._digest(spec.name) for name, spec in specs.items()}
        write_digests(self.folder, config, digests, {name: (one.dtype, one.shape) for name, one in specs.items()})

    def sync(self) -> None:
        """Flush all weight files to the disk."""
        for shard in self.shards:
            sync(self.folder / shard.file)

    def discard(self) -> None:
        """Delete the temporary directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy files beside the weights, with a tokenizer class that transformers 4 and 5 can both load."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer_config.json"
    if path.is_file():
        settings = read_json(path)
        if settings.get("tokenizer_class") == "TokenizersBackend":
            write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the keys of both transformers 5 and 4: dtype and torch_dtype, rope_parameters and rope_theta.

    The rope settings are those that transformers resolves for the model type. The settings of a language model inside
    a wrapper get both spellings too.
    """
    config = dict(config)
    if isinstance(config.get(TEXT), dict) and "model_type" in config[TEXT]:
        config[TEXT] = both_spellings(config[TEXT])
    if "dtype" in config or "torch_dtype" in config:
        config["dtype"] = config["torch_dtype"] = config.get("dtype") or config.get("torch_dtype")
    rope = config.get("rope_parameters")
    if "model_type" in config:
        from compress.model.blocks import make_config

        rope = getattr(make_config(config), "rope_parameters", None)
    return config | both_rope_spellings(config, rope)


def save_checkpoint(
    out: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[TensorSpec, "Tensor"]],
    *,
    source: Path | None = None,
    extra: dict[str, str] | None = None,
) -> None:
    """Write a checkpoint whose tensors are all in memory. Nothing remains at `out` if it fails.

    Tensors have the names of the model; in the file they get those that published checkpoints of its family have.
    """
    pairs, naming = list(tensors), find_naming(config, ())
    writer = CheckpointWriter(out, [replace(spec, stored=naming.in_file(spec.name)) for spec, _ in pairs])
    try:
        for spec, tensor in pairs:
            writer.write(spec.name, tensor.to(spec.dtype.torch))
        writer.publish(both_spellings(config), source=source, extra=extra)
    except BaseException:
        writer.discard()
        raise
