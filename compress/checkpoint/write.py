"""Write a checkpoint: planned first, streamed, and visible only when whole.

All names, dtypes and shapes are known before the first byte, so the headers are written first and every tensor
goes to its final place in whatever order it comes. The directory has a temporary name until `publish`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.read import DTYPE_NAMES, INDEX, TensorInfo, read_tensor
from compress.checkpoint.record import DIGESTS, digests_text, tensor_digest
from compress.core.errors import QCompressError

SHARD_BYTES = 4_000_000_000
COPIED = (  # what goes along from the source checkpoint, when it is there
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor will be, before it exists."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header, and where each tensor's data starts."""

    file: str
    header: bytes
    offsets: dict[str, int]
    bytes: int


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Files of at most `shard_bytes` of data each (a larger single tensor gets its own), exact to the byte."""
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
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))  # keeps every tensor aligned
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    for spec in ordered:
        entry = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape)}
        entries[spec.name] = {**entry, "data_offsets": [position, position + spec.bytes]}
        starts[spec.name] = position
        position += spec.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(file, header, {n: len(header) + start for n, start in starts.items()}, len(header) + position)


def planned_bytes(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> int:
    """Bytes of all safetensors files that these tensors will fill, headers included."""
    return sum(shard.bytes for shard in plan_shards(specs, shard_bytes))


def partial_path(out: Path) -> Path:
    """Where a checkpoint lies until it is whole."""
    return out.with_name(f".{out.name}.partial")


def check_room(out: Path, needed: int) -> None:
    """Refuse an output directory that is not empty, or a disk that cannot hold `needed` bytes.

    What an interrupted run has filled already is not needed again.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise QCompressError(f"{out}: is not empty; give a new directory, or remove it first")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    needed -= sum(file.stat().st_blocks * 512 for file in partial_path(out).glob("*.safetensors"))
    if free < needed:
        raise QCompressError(f"{out}: needs {needed:,} bytes, {folder} has {free:,} free; make room or go elsewhere")


class CheckpointWriter:
    """Fills a planned checkpoint, tensor by tensor, in any order. Nothing is visible at `out` before `publish`."""

    def __init__(self, out: Path, specs: Sequence[TensorSpec], *, keep: bool = False, shard_bytes: int = SHARD_BYTES):
        """`keep` goes on with the files of an interrupted run of the same plan: add to `written` what it had written.

        ValueError for a name that is planned twice, QCompressError for a full directory or disk.
        """
        self.out, self.folder = out, partial_path(out)
        self.specs = {spec.name: spec for spec in specs}
        if len(self.specs) != len(specs):
            raise ValueError(f"{len(specs)} tensors are planned under {len(self.specs)} names")
        self.shards = plan_shards(specs, shard_bytes)
        self.written: set[str] = set()
        self._digests: dict[str, str] = {}
        self._shard_of = {name: shard for shard in self.shards for name in shard.offsets}
        check_room(out, sum(shard.bytes for shard in self.shards))
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
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
        with path.open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.bytes)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put one tensor in its place. ValueError when it is not what was planned."""
        spec = self.specs.get(name)
        if spec is None or tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} was not planned; planned: {spec}")
        shard = self._shard_of[name]
        with (self.folder / shard.file).open("r+b") as file:
            file.seek(shard.offsets[name])
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._digests[name] = tensor_digest(tensor)
        self.written.add(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor as it lies on the disk, written by this run or by an interrupted one."""
        spec, shard = self.specs[name], self._shard_of[name]
        return read_tensor(name, TensorInfo(self.folder / shard.file, shard.offsets[name], spec.dtype, spec.shape))

    def _digest(self, name: str) -> str:
        """Of a tensor as it was written; read back when an interrupted run wrote it."""
        return self._digests.get(name) or tensor_digest(self.tensor(name))

    def publish(
        self,
        config: dict[str, Any],
        *,
        source: Path | None = None,
        extra: dict[str, str] | None = None,
        inspect: Callable[[Path], None] | None = None,
    ) -> None:
        """Write config, digests, index and the `source`'s tokenizer, then give the directory its name.

        `extra` maps file names to texts. `inspect` sees the whole directory before it is renamed, and may refuse it by
        raising. ValueError when a planned tensor was never written.
        """
        missing = sorted(self.specs.keys() - self.written)
        if missing:
            raise ValueError(f"{len(missing)} planned tensors were not written, {missing[0]} first")
        write_json(self.folder / "config.json", config)
        digests = {name: self._digest(name) for name in self.specs}
        (self.folder / DIGESTS).write_text(digests_text(config, digests), encoding="utf-8")
        if len(self.shards) > 1:
            total = sum(spec.bytes for spec in self.specs.values())
            places = {name: shard.file for name, shard in sorted(self._shard_of.items())}
            write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        if source is not None:
            copy_tokenizer(source, self.folder)
        for name, text in (extra or {}).items():
            (self.folder / name).write_text(text, encoding="utf-8")
        self.sync()
        if inspect is not None:
            inspect(self.folder)
        if self.out.exists():
            self.out.rmdir()  # checked empty at the start
        self.folder.rename(self.out)

    def sync(self) -> None:
        """Return when everything written so far is on the disk."""
        for shard in self.shards:
            sync(self.folder / shard.file)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files, and name a tokenizer class that transformers 4 and 5 both know."""
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("tokenizer_class") == "TokenizersBackend":
            write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the keys of transformers 5 and of 4.x: rope_theta, rope_scaling and torch_dtype too."""
    config = dict(config)
    if "dtype" in config or "torch_dtype" in config:
        config["dtype"] = config["torch_dtype"] = config.get("dtype") or config.get("torch_dtype")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    return config


def save_checkpoint(
    out: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[TensorSpec, Tensor]],
    *,
    source: Path | None = None,
    extra: dict[str, str] | None = None,
) -> None:
    """A whole checkpoint at once, for models that are in memory. Nothing is left when it fails."""
    pairs = list(tensors)
    writer = CheckpointWriter(out, [spec for spec, _ in pairs])
    try:
        for spec, tensor in pairs:
            writer.write(spec.name, tensor.to(spec.dtype))
        writer.publish(both_spellings(config), source=source, extra=extra)
    except BaseException:
        writer.discard()
        raise
