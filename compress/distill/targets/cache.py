"""A cache of teacher targets on disk: a manifest of all inputs, and shards with checksums.

    manifest.json                         digests and settings of teacher, tokenizer, chat template, text and codec
    targets-00003-of-00016.safetensors    a shard: `shard_windows` windows, written atomically

A shard contains these tensors:

    window      the number of each window
    ids         a digest of each window's token ids
    ends        where each window's rows end
    codec.*     the codec's tensors, with one row per unmasked token
    manifest    the digest of the manifest
    checksum    the digest of all other tensors

The manifest and the shard's number determine the shard's bytes, so a resumed capture ends in the same bytes.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.record import tensor_digest
from compress.checkpoint.workdir import remove_partial, tensors_kind
from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import file_errors, write_atomic
from compress.core.errors import QCompressError
from compress.core.file_kind import WORK_FILE
from compress.distill.config import DistillConfig
from compress.distill.targets.codecs import Codec, Parts, make_codec
from compress.distill.targets.manifest import (
    MANIFEST,
    Manifest,
    StoredPart,
    checksum,
    differing,
    read_manifest,
    read_parts,
)

SHARD = tensors_kind("manifest", "checksum", "window")


def windows_digest(windows: Windows) -> str:
    """The sha256 of the windows' token ids, masks and, if present, documents."""
    documents = [] if windows.documents is None else [windows.documents]
    return f"sha256:{tensor_digest(torch.cat([windows.ids, windows.mask.long(), *documents], 1))}"


def bytes_tensor(data: bytes) -> Tensor:
    """Bytes as (bytes,) uint8."""
    return torch.tensor(list(data), dtype=torch.uint8)


def window_digests(ids: Tensor) -> Tensor:
    """A digest of each window, (windows, 32) uint8, from token ids (windows, seq_len)."""
    rows = (row.numpy().astype("<i8").tobytes() for row in ids.cpu())
    return torch.stack([bytes_tensor(hashlib.sha256(row).digest()) for row in rows])


def tensors_checksum(tensors: Parts) -> Tensor:
    """The checksum of tensors, (32,) uint8."""
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    return bytes_tensor(
        checksum((spec.name, spec.dtype, spec.shape, tensor_digest(tensors[spec.name])) for spec in specs)
    )


def discard_shards(out: Path, processes: int) -> None:
    """Remove an interrupted capture from `out`. A complete cache and a directory without a manifest stay.

    Raises QCompressError if several processes run, because one could remove shards that another has just written.
    """
    if processes > 1:
        raise QCompressError(f"{out}: --restart works in one process only; remove the directory, then start again")
    if not (out / MANIFEST).is_file() or all((out / name).is_file() for name in read_manifest(out).files):
        return
    for name in read_manifest(out).files:
        SHARD.remove(out / name)
        remove_partial(out, name)
    (out / MANIFEST).unlink()


def open_folder(out: Path, manifest: Manifest) -> Manifest:
    """Create the directory with the manifest, or accept an existing equal manifest; returns the manifest on disk.

    Measurements stored in `data` may differ in their last digits from machine to machine; they are not compared.
    Raises QCompressError if any other value differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_partial(out, MANIFEST)
    if (out / MANIFEST).is_file():
        difference = differing(read_manifest(out).facts(), manifest.facts())
        if difference:
            raise QCompressError(
                f"{out}: this cache was captured with other settings, {difference}; give another --out, or --restart"
            )
        return read_manifest(out)
    other_files = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if other_files:
        raise QCompressError(
            f"{out}: this directory contains {other_files[0]} but no {MANIFEST}, so it is not a cache; "
            "give a new directory"
        )
    with file_errors(out / MANIFEST):
        write_atomic(out / MANIFEST, manifest.text().encode(), kind=WORK_FILE)
    return read_manifest(out)


def write_shard(out: Path, manifest: Manifest, index: int, tensors: Parts) -> None:
    """Write shard `index`, with the manifest's digest and a checksum. Removes partial files of a killed run."""
    tensors = tensors | {"manifest": bytes_tensor(manifest.digest)}
    tensors["checksum"] = tensors_checksum(tensors)
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    shard = plan_shard(manifest.files[index], specs)
    ordered = sorted(tensors, key=lambda name: shard.offsets[name])
    rows = (tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data for name in ordered)
    remove_partial(out, shard.file)
    with file_errors(out / shard.file):
        write_atomic(out / shard.file, shard.header, *rows, kind=SHARD)


def read_shard(path: Path, manifest: Manifest) -> Parts:
    """The tensors of a shard, memory-mapped and verified. Raises QCompressError if the bytes have changed."""
    return {name: part_tensor(part) for name, part in read_parts(path, manifest).items()}


def part_tensor(part: StoredPart) -> Tensor:
    """A tensor that shares the part's memory."""
    if not part.data.size:
        return torch.empty(part.shape, dtype=part.dtype.torch)
    return torch.from_numpy(part.data).view(part.dtype.torch).view(part.shape)


class Cache:
    """A complete cache: manifest, codec, and the stored rows of every window.

    Raises QCompressError if shards are missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.codec: Codec = make_codec(self.manifest.codec)
        missing = [name for name in self.manifest.files if not (self.path / name).is_file()]
        if missing:
            raise QCompressError(
                f"{path}: {len(missing)} of {len(self.manifest.files)} shards are missing, first {missing[0]}; run "
                "the same `qcompress capture` again to complete it"
            )
        self._shards: dict[int, Parts] = {}

    def check(self, **facts: Any) -> None:
        """Raises QCompressError if the cache has other values than `facts`. The error names the first difference."""
        difference = differing(self.manifest.facts(), facts)
        if difference:
            raise QCompressError(
                f"{self.path}: the cache has another setting than this run, {difference}; "
                "use the stored setting, or capture again"
            )

    def shard(self, index: int) -> Parts:
        """The tensors of a shard. The first call reads and verifies them."""
        if index not in self._shards:
            self._shards[index] = read_shard(self.path / self.manifest.files[index], self.manifest)
        return self._shards[index]

    def rows(self, window: int, digest: Tensor) -> Parts:
        """The codec's tensors of one window. Raises QCompressError if the window's tokens differ from the captured."""
        index, place = divmod(window, self.manifest.shard_windows)
        shard = self.shard(index)
        if not torch.equal(shard["ids"][place], digest):
            raise QCompressError(f"{self.path}: window {window} had other tokens when it was captured; capture again")
        start, end = int(shard["ends"][place - 1]) if place else 0, int(shard["ends"][place])
        return {name: shard[f"codec.{name}"][start:end] for name in codec_names(shard)}


def codec_names(shard: Parts) -> Sequence[str]:
    return [name.removeprefix("codec.") for name in shard if name.startswith("codec.")]


def settings_cache(settings: DistillConfig) -> Cache:
    """Open the cache that `settings` name.

    Raises QCompressError if the cache was captured with other settings, or its codec does not support the divergence.
    """
    cache = Cache(str(settings.cache))
    cache.check(seq_len=settings.seq_len, seed=settings.seed, packing=settings.packing)
    if not cache.codec.sparse:
        return cache
    if settings.divergence != "kl":
        raise QCompressError(
            f"{cache.path}: --divergence {settings.divergence} needs the probabilities of all tokens, but codec "
            f"{cache.manifest.codec['name']} stores only a few; use --divergence kl, or capture with --codec hidden"
        )
    cache.check(temperature=settings.temperature)
    return cache
