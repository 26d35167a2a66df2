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
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.read import read_header, read_json
from compress.checkpoint.record import tensor_digest
from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import file_errors, write_atomic
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.targets.codecs import CODECS, Codec, Parts, make_codec

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """All values that determine the targets. `teacher`, `head`, `tokenizer`, `chat_template` and `windows` are digests.

    `windows` covers token ids, masks and documents. `data` describes the text and the start token. `width` is the size
    of the teacher's hidden states.
    """

    teacher: str
    head: str
    tokenizer: str
    chat_template: str
    codec: dict[str, Any]
    data: dict[str, Any]
    windows: str
    width: int
    shard_windows: int
    format: int = FORMAT

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @cached_property
    def digest(self) -> Tensor:
        """The sha256 of the manifest's text, (32,) uint8."""
        return digest_bytes(self.text().encode())

    @property
    def files(self) -> list[str]:
        """The file names of all shards, in order."""
        count = -(-int(self.data["n_samples"]) // self.shard_windows)
        return [f"targets-{i:05d}-of-{count:05d}.safetensors" for i in range(count)]

    def facts(self) -> dict[str, Any]:
        """The values that a cache and a training run must share, under the names of the options."""
        data = {key: self.data[key] for key in ("seq_len", "seed", "start_token")}
        data["samples"] = self.data["n_samples"]
        data["packing"] = self.data.get("packing", "full")  # a cache without this key was captured with "full"
        sources = [source["digest"] for source in self.data["sources"]]
        named = {"codec": self.codec["name"], **{k: v for k, v in self.codec.items() if k != "name"}}
        rest = {"windows": self.windows, "shard_windows": self.shard_windows, "format": self.format}
        digests = {key: getattr(self, key) for key in ("teacher", "head", "tokenizer", "chat_template")}
        return {**digests, **named, **data, "text": sources, **rest}


def differing(stored: dict[str, Any], current: dict[str, Any]) -> str:
    """The first difference, as "name: A stored, B now". Returns "" if `stored` has all values of `current`."""
    for name, value in current.items():
        if stored.get(name) != value:
            return f"{name}: {short(stored.get(name))} stored, {short(value)} now"
    return ""


def short(value: Any) -> Any:
    """A value as text for a message. A digest is shortened."""
    if isinstance(value, list):
        return ", ".join(str(short(one)) for one in value)
    return f"{value[:19]}…" if str(value).startswith("sha256:") else value


def windows_digest(windows: Windows) -> str:
    """The sha256 of the windows' token ids, masks and, if present, documents."""
    documents = [] if windows.documents is None else [windows.documents]
    return f"sha256:{tensor_digest(torch.cat([windows.ids, windows.mask.long(), *documents], 1))}"


def digest_bytes(data: bytes) -> Tensor:
    return torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.uint8)


def window_digests(ids: Tensor) -> Tensor:
    """A digest of each window, (windows, 32) uint8, from token ids (windows, seq_len)."""
    return torch.stack([digest_bytes(row.numpy().astype("<i8").tobytes()) for row in ids.cpu()])


def checksum(tensors: Parts) -> Tensor:
    """The sha256 of all names, dtypes, shapes and bytes, (32,) uint8. The tensor `checksum` is left out."""
    names = sorted(tensors.keys() - {"checksum"})
    lines = [
        f"{name} {tensors[name].dtype} {list(tensors[name].shape)} {tensor_digest(tensors[name])}" for name in names
    ]
    return digest_bytes("\n".join(lines).encode())


def discard_shards(out: Path, processes: int) -> None:
    """Remove an interrupted capture from `out`. A complete cache and a directory without a manifest stay.

    Raises QCompressError if several processes run, because one could remove shards that another has just written.
    """
    if processes > 1:
        raise QCompressError(f"{out}: --restart works in one process only; remove the directory, then start again")
    if not (out / MANIFEST).is_file() or all((out / name).is_file() for name in read_manifest(out).files):
        return
    for path in [*out.glob("targets-*.safetensors"), *out.glob(".targets-*.partial"), out / MANIFEST]:
        path.unlink()


def open_folder(out: Path, manifest: Manifest) -> Manifest:
    """Create the directory with the manifest, or accept an existing equal manifest; returns the manifest on disk.

    Measurements stored in `data` may differ in their last digits from machine to machine; they are not compared.
    Raises QCompressError if any other value differs.
    """
    out.mkdir(parents=True, exist_ok=True)
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
        write_atomic(out / MANIFEST, manifest.text().encode())
    return read_manifest(out)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a cache. Raises QCompressError if its format or its codec is unknown."""
    if not (path / MANIFEST).is_file():
        raise QCompressError(f"{path}: {MANIFEST} is missing; give a directory written by `qcompress capture`")
    value = read_json(path / MANIFEST)
    if value.keys() != {field.name for field in fields(Manifest)} or value["format"] != FORMAT:
        raise QCompressError(f"{path / MANIFEST}: the manifest does not have format {FORMAT}; capture again")
    if value["codec"].get("name") not in CODECS:
        raise QCompressError(
            f"{path / MANIFEST}: codec {value['codec'].get('name')} is not supported; use {', '.join(CODECS)}"
        )
    return Manifest(**value)


def write_shard(out: Path, manifest: Manifest, index: int, tensors: Parts) -> None:
    """Write shard `index`, with the manifest's digest and a checksum. Removes partial files of a killed run."""
    tensors = tensors | {"manifest": manifest.digest}
    tensors["checksum"] = checksum(tensors)
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    shard = plan_shard(manifest.files[index], specs)
    ordered = sorted(tensors, key=lambda name: shard.offsets[name])
    rows = (tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data for name in ordered)
    for stale in out.glob(f".{shard.file}.*.partial"):
        stale.unlink()
    with file_errors(out / shard.file):
        write_atomic(out / shard.file, shard.header, *rows)


def read_shard(path: Path, manifest: Manifest) -> Parts:
    """The tensors of a shard, memory-mapped and verified. Raises QCompressError if the bytes have changed."""
    bytes_ = np.memmap(path, np.uint8, "c")  # copy on write: changes stay in memory
    tensors = {}
    for name, info in read_header(path).items():
        flat = torch.from_numpy(bytes_[info.offset : info.offset + info.bytes])
        tensors[name] = (
            flat.view(info.dtype).view(info.shape) if info.bytes else torch.empty(info.shape, dtype=info.dtype)
        )
    if not torch.equal(tensors.get("manifest", torch.empty(0)), manifest.digest):
        raise QCompressError(f"{path}: this shard belongs to another {MANIFEST}; remove the file and capture again")
    if not torch.equal(tensors.get("checksum", torch.empty(0)), checksum(tensors)):
        raise QCompressError(f"{path}: checksum mismatch; remove the file and capture again")
    return tensors


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
